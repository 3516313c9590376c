package imagebuilder

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/resolve"
)

const (
	maxLine     = 16 << 10
	maxSentence = 1 << 10 // of a line, where what it gives away has to stand
	maxLog      = 8 << 20
	maxTail     = 16 << 10
)

// Transcript follows what make prints: it keeps the log, the ends of both
// streams, tells the stage, and remembers the lines that explain a failure.
type Transcript struct {
	mu             sync.Mutex
	log            io.Writer
	release        resolve.Release // for the words of a failure
	logged         int
	stage          func(build.Stage)
	hopeless       func() // called once it is certain that there will be no images
	evidence       evidence
	streams        []*lines
	Stdout, Stderr tail
}

// NewTranscript writes the whole output to log, up to 8 MiB.
func NewTranscript(log io.Writer, stage func(build.Stage)) *Transcript {
	return &Transcript{log: log, stage: stage, hopeless: func() {}}
}

// Writers are what make's two streams go to.
func (t *Transcript) Writers() (stdout, stderr io.Writer) {
	out, err := &lines{t: t, tail: &t.Stdout}, &lines{t: t, tail: &t.Stderr}
	t.streams = append(t.streams, out, err)
	return out, err
}

// Flush takes in last lines that have no end. Nothing writes any more.
func (t *Transcript) Flush() {
	for _, stream := range t.streams {
		if len(stream.part) > 0 {
			t.line(append(stream.part, '\n'), stream.tail)
			stream.part = nil
		}
	}
}

func (t *Transcript) line(line []byte, to *tail) {
	t.mu.Lock()
	defer t.mu.Unlock()
	to.add(line)
	if t.logged += len(line); t.logged <= maxLog {
		_, _ = t.log.Write(line) // a full disk shows itself where the images are written
	} else if t.logged-len(line) <= maxLog {
		_, _ = fmt.Fprintf(t.log, "[the log ends here: it has reached %d MiB]\n", maxLog>>20)
	}
	text := strings.TrimRight(string(line), "\r\n")
	if strings.HasPrefix(text, "Finalizing root filesystem...") {
		t.stage(build.StageImage)
	}
	t.evidence.see(text[:min(len(text), maxSentence)])
	if t.evidence.feed+t.evidence.disk != "" {
		t.hopeless()
	}
}

// lines cuts a stream into lines; one that is too long is passed on in parts.
type lines struct {
	t    *Transcript
	tail *tail
	part []byte
}

func (l *lines) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			i = len(p) - 1
		}
		l.part = append(l.part, p[:i+1]...)
		p = p[i+1:]
		if l.part[len(l.part)-1] == '\n' || len(l.part) >= maxLine {
			l.t.line(l.part, l.tail)
			l.part = l.part[:0]
		}
	}
	return n, nil
}

// tail keeps the last bytes of a stream, whole lines where they fit.
type tail struct{ b []byte }

func (t *tail) add(line []byte) {
	t.b = append(t.b, line...)
	if len(t.b) > 2*maxTail {
		t.b = append(t.b[:0], t.b[len(t.b)-maxTail:]...)
	}
}

func (t *tail) String() string {
	b := t.b
	if len(b) > maxTail {
		b = b[len(b)-maxTail:]
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			b = b[i+1:]
		}
	}
	return strings.ToValidUTF8(string(b), "?")
}

// evidence is what the lines of opkg, apk and the image tools gave away.
type evidence struct {
	feed, disk, profile string
	unknown, conflict   string
	with                string // what the conflict is with
	clash, clashFile    string
	missing, missingFor string
	tooBig, killed      string
	script              string // package whose install script failed

	// What reports of several lines said in an earlier one.
	opkgNeeds, apkMissing, apkSubject string
}

const name = `([A-Za-z0-9][A-Za-z0-9_.+~-]{0,127})`

var (
	// A feed or a package that could not be had or verified, in the words of
	// opkg, apk and the wget that both call.
	feedLines = []*regexp.Regexp{
		regexp.MustCompile(`^Signature check failed\.`),
		regexp.MustCompile(`^Remove wrong Signature file\.`),
		regexp.MustCompile(`\*\*\* Failed to download the package list from`),
		regexp.MustCompile(`opkg_download(_pkg)?: Failed to download `),
		regexp.MustCompile(`Package ` + name + ` (sha256sum|md5sum|size) mismatch`),
		regexp.MustCompile(`^(ERROR|WARNING): .*(UNTRUSTED signature|BAD signature|BAD archive|integrity error)`),
		regexp.MustCompile(`^WARNING: (updating|opening|updating and opening|opening from cache) https?://`),
		regexp.MustCompile(`^ERROR: wget: exited with error `),
		regexp.MustCompile(`^ERROR: .*(network error|I/O error|IO ERROR|temporary (error|failure)|transient error|remote server|unexpected end of file|not found \(try 'apk update'\))`),
	}
	diskLine       = regexp.MustCompile(`No space left on device|Disk quota exceeded`)
	killedLine     = regexp.MustCompile(`^make.*: \*\*\* .*(\] Killed|\] Error 137)$`)
	profileLine    = regexp.MustCompile(`^Profile "` + name + `" does not exist!`)
	opkgUnknown    = regexp.MustCompile(`opkg_install_cmd: Cannot install package ` + name + `\.$`)
	opkgConflict   = regexp.MustCompile(`check_conflicts_for: The following packages conflict with ` + name + `:`)
	opkgWith       = regexp.MustCompile(`check_conflicts_for:\s+` + name + ` \*`)
	opkgClash      = regexp.MustCompile(`check_data_file_clashes: Package ` + name + ` wants to install file (?:\S*/root-[^/\s]+)?(/[A-Za-z0-9_.+@/-]{1,200})`)
	opkgClashWith  = regexp.MustCompile(`But that file is already provided by package\s+\* ` + name)
	opkgMissing    = regexp.MustCompile(`cannot find dependency ` + name + ` for ` + name)
	opkgNeeds      = regexp.MustCompile(`Cannot satisfy the following dependencies for ` + name + `:`)
	opkgNeeded     = regexp.MustCompile(`^ \*\s+(?:[a-z_]+:\s+)?` + name + `(?: \([^)]*\))? \*`)
	opkgScript     = regexp.MustCompile(`(?:postinst script \S*/|opkg_configure: )` + name + `\.postinst (?:has failed|returned)`)
	apkScript      = regexp.MustCompile(`postinst script \S*/` + name + `\.X[0-9a-f]+\.post-install has failed`)
	apkClash       = regexp.MustCompile(`^ERROR: ` + name + `: trying to overwrite ([A-Za-z0-9_.+@/-]{1,200}) owned by ` + name + `\.$`)
	apkNoPackage   = regexp.MustCompile(`^\s*` + name + ` \(no such package\):`)
	apkRequired    = regexp.MustCompile(`required by: ` + name + `\[`)
	apkSubject     = regexp.MustCompile(`^\s*` + name + `:$`)
	apkBreaks      = regexp.MustCompile(`(?:breaks|conflicts): ` + name + `\[`)
	tooBigLines    = regexp.MustCompile(`is too big: [0-9 ]*> [0-9]+|images are too big by [0-9]+ bytes|file-system partition too big|ext4_allocate_best_fit_partial|Could not allocate block in ext2`)
	tooBigBy       = regexp.MustCompile(`images are too big by ([0-9]+) bytes`)
	tooBigFigures  = regexp.MustCompile(`is too big: ([0-9]+) > ([0-9]+)`)
	apkVersionTail = regexp.MustCompile(`-[0-9][A-Za-z0-9._~]*-r[0-9]+$`)
)

// see takes one line into account. Of several of a kind the first counts:
// what follows is often its consequence.
func (e *evidence) see(line string) {
	for _, pattern := range feedLines {
		note(&e.feed, pattern, line)
	}
	note(&e.disk, diskLine, line)
	note(&e.killed, killedLine, line)
	note(&e.tooBig, tooBigLines, line)
	first(&e.profile, profileLine, line)
	e.seeOpkg(line)
	e.seeApk(line)
}

func (e *evidence) seeOpkg(line string) {
	first(&e.unknown, opkgUnknown, line)
	first(&e.conflict, opkgConflict, line)
	first(&e.with, opkgWith, line)
	if m := opkgClash.FindStringSubmatch(line); m != nil && e.clash == "" {
		e.clash, e.clashFile = m[1], m[2]
	}
	if e.clash != "" {
		first(&e.with, opkgClashWith, line)
	}
	if m := opkgMissing.FindStringSubmatch(line); m != nil && e.missing == "" {
		e.missing, e.missingFor = m[1], m[2]
	}
	if m := opkgNeeded.FindStringSubmatch(line); m != nil && e.opkgNeeds != "" && e.missing == "" {
		e.missing, e.missingFor = m[1], e.opkgNeeds
	}
	first(&e.opkgNeeds, opkgNeeds, line)
	first(&e.script, opkgScript, line)
}

// seeApk reads apk's reports, where the package and what is wrong with it
// stand in different lines.
func (e *evidence) seeApk(line string) {
	if m := apkClash.FindStringSubmatch(line); m != nil && e.clash == "" {
		e.clash, e.clashFile, e.with = apkName(m[1]), "/"+m[2], apkName(m[3])
	}
	if m := apkScript.FindStringSubmatch(line); m != nil && e.script == "" {
		e.script = apkName(m[1])
	}
	if m := apkNoPackage.FindStringSubmatch(line); m != nil {
		e.apkMissing = m[1]
	}
	if m := apkRequired.FindStringSubmatch(line); m != nil && e.apkMissing != "" {
		switch {
		case m[1] == "world" && e.unknown == "":
			e.unknown = e.apkMissing
		case m[1] != "world" && e.missing == "":
			e.missing, e.missingFor = e.apkMissing, apkName(m[1])
		}
		e.apkMissing = ""
	}
	if m := apkSubject.FindStringSubmatch(line); m != nil {
		e.apkSubject = apkName(m[1])
	}
	if m := apkBreaks.FindStringSubmatch(line); m != nil && m[1] != "world" && e.conflict == "" {
		e.conflict, e.with = e.apkSubject, apkName(m[1])
	}
}

// apkName cuts the version off apk's "name-version-rN".
func apkName(s string) string { return apkVersionTail.ReplaceAllString(s, "") }

// note keeps the first line that matches.
func note(to *string, pattern *regexp.Regexp, line string) {
	if *to == "" && pattern.MatchString(line) {
		*to = line
	}
}

// first keeps what the first line that matches names.
func first(to *string, pattern *regexp.Regexp, line string) {
	if *to != "" {
		return
	}
	if m := pattern.FindStringSubmatch(line); m != nil {
		*to = m[1]
	}
}

// Feed returns the failure of a feed that make could not fetch or verify, or
// nil. make goes on without such a feed and may well end with success: the
// images are not what was asked for all the same.
func (t *Transcript) Feed() *build.Failure {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.evidence.disk != "":
		return DiskFull()
	case t.evidence.feed != "":
		return build.Fail(build.KindUpstream, "A package feed could not be fetched or its signature did not hold (%s). This is tried again by itself.", clip(t.evidence.feed))
	}
	return nil
}

// Explain says why make left no image.
func (t *Transcript) Explain() *build.Failure {
	if f := t.Feed(); f != nil {
		return f
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.evidence.explain(t.release)
}

// TooBig returns the failure of images that are said to be too big, or nil.
// make ends with success on flash devices all the same.
func (t *Transcript) TooBig() *build.Failure {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.evidence.tooBig == "" {
		return nil
	}
	return tooBig(t.evidence.tooBig)
}

func (e *evidence) explain(r resolve.Release) *build.Failure {
	switch {
	case e.profile != "":
		return build.Fail(build.KindProfile, "The ImageBuilder does not know the profile %q.", e.profile)
	case e.clash != "":
		return about(e.clash, build.Fail(build.KindConflict, "%s", e.conflictWith(e.clash).Sentence(r)))
	case e.conflict != "":
		return about(e.conflict, build.Fail(build.KindConflict, "%s", e.conflictWith(e.conflict).Sentence(r)))
	case e.missing != "":
		problem := resolve.Problem{Kind: resolve.Missing, Name: e.missing, Chain: []string{e.missingFor}}
		return about(e.missingFor, build.Fail(build.KindMissing, "%s", problem.Sentence(r)))
	case e.unknown != "":
		problem := resolve.Problem{Kind: resolve.Unknown, Name: e.unknown}
		return about(e.unknown, build.Fail(build.KindUnknownPackage, "%s", problem.Sentence(r)))
	case e.script != "":
		return about(e.script, build.Fail(build.KindBuild, "The install script of %s fails. Leave %s out, or tell those who look after it.", e.script, e.script))
	case e.tooBig != "":
		return tooBig(e.tooBig)
	case e.killed != "":
		return wasKilled()
	}
	return build.Fail(build.KindBuild, "The ImageBuilder failed; the end of its log says where.")
}

func (e *evidence) conflictWith(name string) *resolve.Problem {
	return &resolve.Problem{Kind: resolve.Conflict, Name: name, With: cmp.Or(e.with, "another package"), File: e.clashFile}
}

func wasKilled() *build.Failure {
	return build.Fail(build.KindWorker, "A part of the ImageBuilder was killed, perhaps for want of memory. Try again later, or tell the operator of this server.")
}

func tooBig(line string) *build.Failure {
	if m := tooBigFigures.FindStringSubmatch(line); m != nil {
		return build.Fail(build.KindTooBig, "The images are too big for this device: %s bytes, where %s fit. Leave packages out.", m[1], m[2])
	}
	if m := tooBigBy.FindStringSubmatch(line); m != nil {
		return build.Fail(build.KindTooBig, "The images are too big for this device by %s bytes. Leave packages out.", m[1])
	}
	return build.Fail(build.KindTooBig, "The images are too big: the packages do not fit into the root file system. Leave packages out, or ask for a larger one by rootfs_size_mb where the device has room.")
}

func about(pkg string, f *build.Failure) *build.Failure {
	f.Package = pkg
	return f
}

func clip(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > 200 {
		s = s[:200] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}
