package sqlite

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// LockedError says that another process works on the data folder.
type LockedError struct {
	Dir    string
	Holder string // its process ID, "" if it did not say
}

func (e *LockedError) Error() string {
	holder := ""
	if e.Holder != "" {
		holder = " (process " + e.Holder + ")"
	}
	return fmt.Sprintf("The data folder %s is in use by another sysup%s. Stop that one, or give this one a data folder of its own.", e.Dir, holder)
}

// Lock makes this process the only one to work on the data folder until the
// Closer is closed or the process ends, however it ends. The error is a
// *LockedError if another one does.
func Lock(dir string) (io.Closer, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data folder %s: %w", dir, err)
	}
	if err := lock(f, dir); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func lock(f *os.File, dir string) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return &LockedError{Dir: dir, Holder: holder(f)}
	}
	if err == nil {
		err = sign(f)
	}
	if err != nil {
		return fmt.Errorf("lock the data folder %s: %w", dir, err)
	}
	return nil
}

// sign leaves this process's ID for whoever finds the lock taken.
func sign(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := fmt.Fprintln(f, os.Getpid())
	return err
}

func holder(f *os.File) string {
	text, err := io.ReadAll(io.LimitReader(f, 20))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}
