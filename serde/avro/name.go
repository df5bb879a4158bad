package avro

import (
	"encoding/json"
	"strings"
)

// nameIn returns the full name of the record that a schema is of, also where the schema refers to others.
func nameIn(schema string) string {
	var s struct{ Name, Namespace string }
	if json.Unmarshal([]byte(schema), &s) != nil {
		return ""
	}
	return joinName(s.Namespace, s.Name)
}

func joinName(namespace, name string) string {
	if name == "" || namespace == "" || strings.Contains(name, ".") {
		return name
	}
	return namespace + "." + name
}
