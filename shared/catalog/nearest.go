package catalog

import (
	"cmp"
	"iter"
	"math/bits"
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
)

const maxSuggestions = 3

// nearest returns the candidates that look most like name, best first.
func nearest(name string, candidates iter.Seq[string]) []string {
	type match struct {
		name     string
		distance int
	}
	var best []match
	limit := max(2, len(name)/3)
	letters := lettersOf(name)
	for c := range candidates {
		// Each edit changes the length by one at most and touches two letters
		// at most; that spares nearly all of the dear comparisons.
		if d := len(c) - len(name); d > limit || -d > limit || bits.OnesCount64(letters^lettersOf(c)) > 2*limit {
			continue
		}
		d := levenshtein.ComputeDistance(name, c)
		if d > limit || slices.ContainsFunc(best, func(m match) bool { return m.name == c }) {
			continue
		}
		best = append(best, match{c, d})
		slices.SortStableFunc(best, func(a, b match) int { return cmp.Compare(a.distance, b.distance) })
		if len(best) > maxSuggestions {
			best = best[:maxSuggestions]
			limit = best[maxSuggestions-1].distance
		}
	}
	names := make([]string, len(best))
	for i, m := range best {
		names[i] = strings.Clone(m.name)
	}
	return names
}

// lettersOf is the set of a name's characters, a bit for each.
func lettersOf(name string) uint64 {
	var set uint64
	for i := range len(name) {
		set |= 1 << (name[i] & 63)
	}
	return set
}

// didYouMean is the end of a refusal.
func didYouMean(names []string) string {
	switch len(names) {
	case 0:
		return ""
	case 1:
		return " Did you mean " + names[0] + "?"
	}
	return " Did you mean " + strings.Join(names[:len(names)-1], ", ") + " or " + names[len(names)-1] + "?"
}
