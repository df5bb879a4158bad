//go:build unix

package state

import (
	"io/fs"
	"runtime"
	"syscall"
)

// inodeOf returns which file of which device info is of. The device is 0 where its number is only for as long as it is
// mounted.
func inodeOf(info fs.FileInfo) (inode, device uint64) {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0
	}
	device = uint64(s.Dev)
	if runtime.GOOS == "linux" && device>>8&0xfff == 0 && device>>44 == 0 { // major number 0
		device = 0
	}
	return uint64(s.Ino), device
}
