package feed

import (
	"encoding/hex"
	"io/fs"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Limits of one index. The longest real one, OpenWrt's feed "packages", has
// about 6,000 packages in 9 MB of text.
const (
	maxText         = 64 << 20 // of a Packages or an index.json
	maxLine         = 64 << 10
	maxPackages     = 100_000
	maxDependencies = 1_000_000 // of all packages together
	maxList         = 1_000     // of one package's dependencies, provides, conflicts
	maxName         = 128
	maxABI          = 64 // libwolfssl's has 38
	maxFile         = 255
	maxDescription  = 4 << 10
	// Real descriptions have less than 30 lines.
	maxDescriptionLines = 100
	maxSize             = 1 << 40
)

const alphanumeric = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

// charset marks the bytes of which a word may be made.
type charset [256]bool

func newCharset(bytes string) *charset {
	c := new(charset)
	for i := range len(bytes) {
		c[bytes[i]] = true
	}
	return c
}

var (
	firstChars   = newCharset(alphanumeric)
	nameChars    = newCharset(alphanumeric + "_.+-")
	versionChars = newCharset(alphanumeric + "_.+~:-")
	abiChars     = newCharset(alphanumeric + "_.+")
	fileChars    = newCharset(alphanumeric + "_.+~:,=@/-")
)

// word tells whether s is made of c, begins with a letter or a digit and has
// at most limit bytes.
func (c *charset) word(s string, limit int) bool {
	if s == "" || len(s) > limit || !firstChars[s[0]] {
		return false
	}
	for i := range len(s) {
		if !c[s[i]] {
			return false
		}
	}
	return true
}

func isName(s string) bool    { return nameChars.word(s, maxName) }
func isVersion(s string) bool { return versionChars.word(s, maxName) }
func isABI(s string) bool     { return abiChars.word(strings.TrimPrefix(s, "-"), maxABI) }

// only returns s when it is good, else nothing.
func only(good func(string) bool, s string) string {
	if good(s) {
		return s
	}
	return ""
}

// fileName is a path below the feed's address, or nothing.
func fileName(s string) string {
	s = strings.TrimPrefix(s, "./")
	if !fileChars.word(s, maxFile) || !fs.ValidPath(s) {
		return ""
	}
	return s
}

func isDigest(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil && len(s) == 64
}

func parseSize(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0
	}
	return sizeOf(n)
}

// sizeOf is n when it can be a number of bytes, else 0.
func sizeOf(n int64) int64 {
	if n < 0 || n > maxSize {
		return 0
	}
	return n
}

// describe makes a description of text: short enough, and UTF-8.
func describe(text string) string {
	for n := maxDescription; n > 0 && n < len(text); n-- {
		if utf8.RuneStart(text[n]) {
			text = text[:n]
			break
		}
	}
	if !utf8.ValidString(text) {
		return ""
	}
	return strings.TrimSpace(text)
}
