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

// suggestion is a name that may have been meant; a low cost is a good one.
type suggestion struct {
	name string
	cost int
}

// nearest returns the candidates that look most like name, best first: those
// that few typing errors lead to, then those that name is a part of. Capitals
// are no errors.
func nearest(name string, candidates iter.Seq[string]) []string {
	var best []suggestion
	name = strings.ToLower(name)
	typos, letters := min(3, 1+len(name)/4), lettersOf(name)
	for c := range candidates {
		cost, ok := costOf(name, strings.ToLower(c), typos, letters)
		if !ok || len(best) == maxSuggestions && cost >= best[maxSuggestions-1].cost {
			continue
		}
		if slices.ContainsFunc(best, func(s suggestion) bool { return s.name == c }) {
			continue
		}
		best = append(best, suggestion{c, cost})
		slices.SortStableFunc(best, func(a, b suggestion) int { return cmp.Compare(a.cost, b.cost) })
		if best = best[:min(len(best), maxSuggestions)]; len(best) == maxSuggestions {
			typos = min(typos, best[maxSuggestions-1].cost)
		}
	}
	names := make([]string, len(best))
	for i, s := range best {
		names[i] = strings.Clone(s.name)
	}
	return names
}

// costOf compares a name with a candidate, if that is worth it. Each error
// changes the length by one at most and touches two letters at most, which
// spares nearly all of the dear comparisons.
func costOf(name, candidate string, typos int, letters uint64) (int, bool) {
	longer := len(candidate) - len(name)
	if longer <= typos && -longer <= typos && bits.OnesCount64(letters^lettersOf(candidate)) <= 2*typos {
		if d := levenshtein.ComputeDistance(name, candidate); d <= typos {
			return d, true
		}
	}
	if len(name) >= 3 && longer > 0 && strings.Contains(candidate, name) {
		return len(name) + longer, true // above any number of typing errors
	}
	return 0, false
}

// lettersOf is the set of a name's characters, a bit for each.
func lettersOf(name string) uint64 {
	var set uint64
	for i := range len(name) {
		set |= 1 << (name[i] & 63)
	}
	return set
}
