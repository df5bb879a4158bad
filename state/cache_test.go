package state

import (
	"fmt"
	"testing"
)

// TestReadCacheKeepsWhatIsUsed reads one row between others that take its place in turn.
func TestReadCacheKeepsWhatIsUsed(t *testing.T) {
	c := cache{limit: 16 << 10}
	c.bare = true
	put := func(key string) { c.put(hashKey([]byte(key)), []byte(key), []byte("value of "+key)) }
	look := func(key string) what {
		value, w := c.look(hashKey([]byte(key)), []byte(key))
		if w == present && string(value) != "value of "+key {
			t.Fatalf("the cache has %q of %s", value, key)
		}
		return w
	}
	put("used")
	put("unused")
	for i := range 5000 {
		put(fmt.Sprint("row", i))
		if look("used") != present {
			t.Fatalf("a row that is read all the time was given up after %d others", i)
		}
	}
	if look("unused") != unknown || look("row4999") != present {
		t.Error("a row that nobody read was kept, or the last one was not")
	}
	if n := c.bytes(); n > c.limit {
		t.Errorf("the cache takes %d bytes, want at most %d", n, c.limit)
	}
}
