package imagebuilder

import (
	"fmt"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// The inner target of make image is a chain of others, which can be called one
// by one. A tree is one that the fast path knows if it has just this chain.
var chain = []string{"package_reload", "package_install", "prepare_rootfs", "build_image", "json_overview_image_info", "checksum"}

// chainLine is what else a recipe of that target may hold: words for people,
// and the folders that begin() makes.
var (
	chainLine = regexp.MustCompile(`^@?(echo( .*)?|rm -rf( \$\(TARGET_DIR(_ORIG)?\))+|mkdir -p( \$\([A-Z_]+\)(/tmp)?)+)$`)
	chainStep = regexp.MustCompile(`^@?\$\(MAKE\)( -s)? ([a-z_]+)$`)
)

// chainReader tells by a Makefile's lines whether make image is the chain.
type chainReader struct {
	inside, foreign bool
	steps           []string
}

func (c *chainReader) line(line string) {
	recipe, ok := strings.CutPrefix(line, "\t")
	if !ok || !c.inside {
		c.inside = strings.HasPrefix(line, "_call_image:")
		return
	}
	if m := chainStep.FindStringSubmatch(recipe); m != nil {
		c.steps = append(c.steps, m[2])
		return
	}
	c.foreign = c.foreign || !chainLine.MatchString(recipe)
}

func (c *chainReader) known() bool { return !c.foreign && slices.Equal(c.steps, chain) }

// Goals that are added to a tree's Makefile for one run of it. They print what
// the tree itself makes of a request, in words of make, not of a shell.
var (
	openGoal = "--eval=sysup-open: ; @rm -rf $(TARGET_DIR) $(TARGET_DIR_ORIG); mkdir -p $(TARGET_DIR) $(DL_DIR) $(TOPDIR)/tmp"
	tellGoal = "--eval=sysup-tell: ; @cd $(DL_DIR) && sha256sum -- * $(info root=$(TARGET_DIR))$(info profile=$(filter $(USER_PROFILE),$(PROFILE_NAMES)))$(info packages=$(BUILD_PACKAGES))"
)

// told is what sysup-tell printed.
type facts struct {
	root     string // the folder that packages are installed to, in the tree
	profile  string
	packages string // that make would install
	indices  string // names and digests of the feeds' indices
}

// readFacts reads what the goals printed in a tree that its job sees at dir.
// There is no code of packages that could have printed any of it.
func readFacts(text, dir string) (f facts, err error) {
	var indices strings.Builder
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch {
		case name == "root":
			f.root, err = filepath.Rel(dir, value)
		case name == "profile":
			f.profile = value
		case name == "packages":
			f.packages = value
		case indexLine.MatchString(line):
			indices.WriteString(line)
		}
	}
	f.indices = indices.String()
	if ok, _ := path.Match("build_dir/target-*/root-*", f.root); err != nil || !ok || f.profile == "" || f.packages == "" {
		return f, fmt.Errorf("the tree does not tell where it installs packages, which, or for which profile")
	}
	return f, nil
}

var indexLine = regexp.MustCompile(`^[0-9a-f]{64} [ *][A-Za-z0-9._+-]{1,200}\n$`)
