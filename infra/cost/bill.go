package main

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Bill is what a set of amounts costs, in USD.
type Bill struct {
	Title     string  `json:"title"`
	Note      string  `json:"note"`
	Variant   bool    `json:"variant,omitempty"` // of the bill before; Markdown gives its sum only
	Lines     []Line  `json:"lines"`
	USD       float64 `json:"usd"`        // by the list
	AfterFree float64 `json:"after_free"` // with the always-free tier, nothing else in the account
}

// Line is one part of a bill.
type Line struct {
	Key       string  `json:"key"`
	Part      string  `json:"part"`
	Amount    float64 `json:"amount"`
	Unit      string  `json:"unit"`
	USD       float64 `json:"usd"`
	AfterFree float64 `json:"after_free"`
}

// bill prices the amounts in the order of the table. An amount without a
// price is an error: it would be free by mistake.
func (p Prices) bill(q question) (Bill, error) {
	b := Bill{Title: q.title, Note: q.note, Variant: q.variant}
	priced := 0
	for _, price := range p.List {
		n, ok := q.amounts[price.Key]
		if !ok {
			continue
		}
		priced++
		line := Line{
			Key: price.Key, Part: price.Name, Amount: n, Unit: price.Unit,
			USD: n * price.each(), AfterFree: max(0, n-price.AlwaysFree) * price.each(),
		}
		b.Lines = append(b.Lines, line)
		b.USD += line.USD
		b.AfterFree += line.AfterFree
	}
	if priced < len(q.amounts) {
		return Bill{}, fmt.Errorf("%s: the price table lacks a key that the model uses; it uses %v", q.title, slices.Sorted(maps.Keys(q.amounts)))
	}
	return b, nil
}

// markdown is the bill as a heading, a note and a table.
func (b Bill) markdown() string {
	var s strings.Builder
	if b.Variant {
		return fmt.Sprintf("**%s**: %s USD, %s after the always-free tier. %s\n", b.Title, usd(b.USD), usd(b.AfterFree), b.Note)
	}
	fmt.Fprintf(&s, "### %s\n\n%s\n\n", b.Title, b.Note)
	s.WriteString("| part | amount | USD | after the always-free tier |\n|---|---:|---:|---:|\n")
	for _, l := range b.Lines {
		fmt.Fprintf(&s, "| %s | %s %s | %s | %s |\n", l.Part, number(l.Amount), l.Unit, usd(l.USD), usd(l.AfterFree))
	}
	fmt.Fprintf(&s, "| **together** | | **%s** | **%s** |\n", usd(b.USD), usd(b.AfterFree))
	return s.String()
}

// markdown is the price table with its sources.
func (p Prices) markdown() string {
	var s strings.Builder
	fmt.Fprintf(&s, "### Prices\n\nRegion %s, in USD, without tax. \"Known\" is how and as of when the figure is known; the page is AWS's own.\n\n", p.Region)
	s.WriteString("| what | USD | always free each month | known |\n|---|---|---|---|\n")
	for _, price := range p.List {
		free := "–"
		if price.AlwaysFree > 0 {
			free = number(price.AlwaysFree)
		}
		fmt.Fprintf(&s, "| [%s](%s) | %s for %s %s | %s | %s |\n", price.Name, price.Source,
			strconv.FormatFloat(price.USD, 'f', -1, 64), number(price.Per), price.Unit, free, price.known())
	}
	return s.String()
}

func (p Price) known() string {
	if strings.HasPrefix(p.Seen, "https://") {
		return fmt.Sprintf("%s, [read](%s)", p.Date, p.Seen)
	}
	return p.Date + ", " + p.Seen
}

// number writes three significant digits or all before the point, with commas
// between thousands.
func number(x float64) string {
	if x != 0 && math.Abs(x) < 100 {
		return strconv.FormatFloat(x, 'g', 3, 64)
	}
	digits := strconv.FormatFloat(x, 'f', 0, 64)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

func usd(x float64) string {
	switch {
	case x == 0:
		return "0"
	case x < 0.0005:
		return "<0.001"
	case x < 10:
		return strconv.FormatFloat(x, 'f', 3, 64)
	case x < 100:
		return strconv.FormatFloat(x, 'f', 2, 64)
	}
	return number(x)
}
