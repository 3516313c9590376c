package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
)

// wgetError is the exit status of a wget that failed.
type wgetError int

func (e wgetError) Error() string { return fmt.Sprintf("wget: exited with error %d", int(e)) }

// wget fetches url into the file name by the host's wget, as opkg and OpenWrt's apk do. The file is
// there only when all of it is.
func wget(url, name string) error {
	part := name + ".part"
	defer os.Remove(part)
	cmd := exec.Command("wget", "-q", "-O", part, url)
	cmd.Stderr = os.Stderr
	var exit *exec.ExitError
	if err := cmd.Run(); errors.As(err, &exit) {
		return wgetError(exit.ExitCode())
	} else if err != nil {
		return err
	}
	return os.Rename(part, name)
}
