// Cost computes what the service costs on AWS from a price table and a table
// of what it does, and prints it as Markdown, as JSON, or into a document.
//
//	go run ./infra/cost                        Markdown
//	go run ./infra/cost -json                  the same as JSON
//	go run ./infra/cost -write docs/deploy.md  into the document, between its two marks
//	go run ./infra/cost -usage mine.toml       with other assumptions
package main

import (
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

//go:embed prices.toml
var defaultPrices string

//go:embed usage.toml
var defaultUsage string

// The marks in a document between which the tables stand.
const (
	beginMark = "<!-- cost: begin. Written by: go run ./infra/cost -write docs/deploy.md -->\n"
	endMark   = "<!-- cost: end -->\n"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "cost:", err)
		os.Exit(1)
	}
}

func run(args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("cost", flag.ContinueOnError)
	asJSON := flags.Bool("json", false, "print JSON")
	write := flags.String("write", "", "write the tables into this `document`")
	pricesFile := flags.String("prices", "", "a price table in place of the built-in one")
	usageFile := flags.String("usage", "", "a usage table in place of the built-in one")
	if err := flags.Parse(args); err != nil {
		return err
	}
	report, err := load(*pricesFile, *usageFile)
	if err != nil {
		return err
	}
	switch {
	case *write != "":
		return report.into(*write)
	case *asJSON:
		encoder := json.NewEncoder(stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(report)
	}
	_, err = io.WriteString(stdout, report.markdown())
	return err
}

// Report is everything that is computed.
type Report struct {
	Region string `json:"region"`
	Bills  []Bill `json:"bills"`
	prices Prices
}

func load(pricesFile, usageFile string) (Report, error) {
	pricesText, err := textOf(pricesFile, defaultPrices)
	if err != nil {
		return Report{}, err
	}
	usageText, err := textOf(usageFile, defaultUsage)
	if err != nil {
		return Report{}, err
	}
	prices, err := parsePrices(pricesText)
	if err != nil {
		return Report{}, err
	}
	usage, err := parseUsage(usageText)
	if err != nil {
		return Report{}, err
	}
	return newReport(prices, usage)
}

func textOf(file, otherwise string) (string, error) {
	if file == "" {
		return otherwise, nil
	}
	b, err := os.ReadFile(file)
	return string(b), err
}

func (r Report) markdown() string {
	var s strings.Builder
	s.WriteString("| what | USD by the list | after the always-free tier |\n|---|---:|---:|\n")
	for _, b := range r.Bills {
		fmt.Fprintf(&s, "| %s | %s | %s |\n", b.Title, usd(b.USD), usd(b.AfterFree))
	}
	for _, b := range r.Bills {
		s.WriteString("\n" + b.markdown())
	}
	return s.String() + "\n" + r.prices.markdown()
}

// into replaces what stands between the two marks of a document.
func (r Report) into(file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, found := strings.Cut(string(b), beginMark)
	_, after, ended := strings.Cut(rest, endMark)
	if !found || !ended {
		return errors.New(file + " lacks the marks between which the tables stand; they are in infra/cost/main.go")
	}
	return os.WriteFile(file, []byte(before+beginMark+r.markdown()+endMark+after), 0o644)
}
