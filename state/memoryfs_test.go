package state

import (
	"testing"
	"time"
)

// TestCrashOfMemoryFS copies a file system while files of it are made: neither waits for the other for ever.
func TestCrashOfMemoryFS(t *testing.T) {
	const rounds = 5000
	for name, do := range map[string]func(fs FS) error{
		"Lock": func(fs FS) error {
			lock, err := fs.Lock("lock")
			if err != nil {
				return err
			}
			return lock.Close()
		},
		"Link": func(fs FS) error {
			if err := fs.Link("a", "link"); err != nil {
				return err
			}
			return fs.Remove("link")
		},
		"ReuseForWrite": func(fs FS) error {
			f, err := fs.ReuseForWrite("a", "b", writeNoMatter)
			if err != nil {
				return err
			}
			return f.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			fs, ended := NewMemoryFS(), make(chan error, 1)
			go func() {
				for range rounds {
					f, err := fs.Create("a", writeNoMatter)
					if err == nil {
						err = f.Close()
					}
					if err == nil {
						err = do(fs)
					}
					if err != nil {
						ended <- err
						return
					}
				}
				ended <- nil
			}()
			late := time.After(time.Minute)
			copied := make(chan struct{}, 1)
			for {
				go func() {
					CrashFS(fs)
					copied <- struct{}{}
				}()
				select {
				case <-copied:
				case err := <-ended:
					must(t, err)
					return
				case <-late:
					t.Fatal("it does not end")
				}
			}
		})
	}
}
