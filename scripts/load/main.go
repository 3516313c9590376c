// Command load is the other half of scripts/bench: upstreams to build from,
// load on a server, and the times that are held beside its figures.
package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/alecthomas/kong"
)

type cli struct {
	Upstream upstreamCmd `cmd:"" help:"Serve an upstream until the process is ended."`
	Fire     fireCmd     `cmd:"" help:"Send one kind of request over many connections for a while."`
	Overhead overheadCmd `cmd:"" help:"Have different images built, one after the other, and take off what make took."`
	Touch    touchCmd    `cmd:"" help:"Ask for a device of every target, so that the server has read all of its catalogue."`
	Start    startCmd    `cmd:"" help:"Start a server a few times, each until its first answer."`
	Fsync    fsyncCmd    `cmd:"" help:"Append 4 KB to a file and make them durable, again and again."`
}

func main() {
	c := kong.Parse(&cli{}, kong.Name("load"), kong.UsageOnError())
	c.FatalIfErrorf(c.Run())
}

// quantile of sorted times; 0.5 is the median.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// ms is a time in milliseconds, as the tables have it.
func ms(d time.Duration) string { return fmt.Sprintf("%.2f", float64(d.Microseconds())/1000) }

func printTimes(what string, times []time.Duration) {
	slices.Sort(times)
	fmt.Printf("%-34s median %s ms, p99 %s ms, %d times\n", what, ms(quantile(times, 0.5)), ms(quantile(times, 0.99)), len(times))
}
