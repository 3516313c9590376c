package buildtest

import (
	"testing"
	"time"
	"unsafe"
)

// Frozen is a time that was read d ago, after which the monotonic clock stood
// still for that long, as it does while Lambda freezes a process. It does not
// work in a bubble of synctest, which has no such clock.
func Frozen(t testing.TB, d time.Duration) time.Time {
	t.Helper()
	at := time.Now().Add(-d)
	inside := (*struct { // of time.Time, which nothing else lets anybody set
		wall uint64
		mono int64
		loc  *time.Location
	})(unsafe.Pointer(&at))
	inside.mono += int64(d)
	if still, passed := time.Since(at), time.Since(at.Round(0)); still >= d || passed < d {
		t.Fatalf("by the monotonic clock %s have passed and by the other one %s: this version of Go keeps times in another way, so write this helper anew", still, passed)
	}
	return at
}
