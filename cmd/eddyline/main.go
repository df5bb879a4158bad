// Command eddyline looks at applications from outside: what their topologies are, and what an edit of one does. Where a
// topology is needed it comes from a file that the application's own `describe --json` writes.
package main

import "github.com/eddyline/eddyline/streams"

func main() { streams.Tool() }
