//go:build !unix

package state

import "io/fs"

// inodeOf returns nothing: this system does not say which file info is of.
func inodeOf(fs.FileInfo) (inode, device uint64) { return 0, 0 }
