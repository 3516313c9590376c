// Hosttool is the one program behind the host tools of the demo distribution's ImageBuilder: it lies in
// staging_dir/host/bin under the name of each tool it stands for, and acts by the name it was called.
//
// Each tool has the options that the demo's Makefiles use and no others. What it prints follows the
// tools of OpenWrt, since the builder reads failures from it.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// tools maps a program's name to what it does.
var tools = map[string]func(args []string) error{
	"opkg":             opkgMain,
	"opkg-make-index":  opkgMakeIndex,
	"apk":              apkMain,
	"usign":            usignMain,
	"apk-key":          apkKey,
	"fwtool":           fwtoolMain,
	"make_ext4fs":      makeExt4Main,
	"gen_image":        genImageMain,
	"json_image_info":  jsonImageInfo,
	"bom":              bomMain,
	"targetinfo":       targetinfoMain,
	"check_image_size": checkImageSize,
}

// namesCommand makes the program list the tools, for the maker of the demo, which links each name to it.
const namesCommand = "--names"

func main() {
	name := filepath.Base(os.Args[0])
	if len(os.Args) == 2 && os.Args[1] == namesCommand {
		for tool := range tools {
			fmt.Println(tool)
		}
		return
	}
	tool, ok := tools[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "%s is not one of the ImageBuilder's tools\n", name)
		os.Exit(127)
	}
	if err := tool(os.Args[1:]); err != nil {
		if !errors.Is(err, errReported) {
			fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		}
		os.Exit(1)
	}
}

// errReported ends a tool that has printed its failure itself.
var errReported = errors.New("failed")

// arguments are a tool's options and operands. Options are written --key value, or -k value.
type arguments struct {
	options map[string]string
	rest    []string
}

// parse splits args. The names in switches take no value.
func parse(args []string, switches ...string) arguments {
	a := arguments{options: map[string]string{}}
	bare := " " + strings.Join(switches, " ") + " "
	for i := 0; i < len(args); i++ {
		key := strings.TrimLeft(args[i], "-")
		switch {
		case key == args[i]:
			a.rest = append(a.rest, args[i])
		case strings.Contains(bare, " "+key+" ") || i+1 == len(args):
			a.options[key] = "1"
		default:
			i++
			a.options[key] = args[i]
		}
	}
	return a
}

// words splits an option that holds a list.
func (a arguments) words(key string) []string { return strings.Fields(a.options[key]) }
