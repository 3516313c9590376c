package main

import (
	"fmt"
	"reflect"
	"regexp"
	"strings"

	"github.com/BurntSushi/toml"
)

// Prices is the price table of one region.
type Prices struct {
	Region string  `toml:"region"`
	List   []Price `toml:"price"`
}

// Price is what one unit costs: USD for each Per units. AlwaysFree is what
// every account has free each month without end, in units.
type Price struct {
	Key        string  `toml:"key"`
	Name       string  `toml:"name"`
	Unit       string  `toml:"unit"`
	Per        float64 `toml:"per"` // 1 if absent
	USD        float64 `toml:"usd"`
	AlwaysFree float64 `toml:"always_free"`
	Trial      string  `toml:"trial"`  // said, never counted
	Source     string  `toml:"source"` // AWS's page
	Seen       string  `toml:"seen"`   // the page that was read, or "general knowledge"
	Date       string  `toml:"date"`   // YYYY, YYYY-MM or YYYY-MM-DD
}

var (
	datePattern   = regexp.MustCompile(`^20\d\d(-(0[1-9]|1[0-2])(-[0-3]\d)?)?$`)
	sourcePattern = regexp.MustCompile(`^https://(docs\.)?aws\.amazon\.com/`)
)

// each is the price of one unit.
func (p Price) each() float64 { return p.USD / p.Per }

func (p Price) check() error {
	switch {
	case p.Key == "" || p.Name == "" || p.Unit == "":
		return fmt.Errorf("price %q needs a key, a name and a unit", p.Key)
	case p.USD <= 0 || p.Per <= 0 || p.AlwaysFree < 0:
		return fmt.Errorf("price %q: usd and per must be above 0 and always_free not below, got %v, %v, %v", p.Key, p.USD, p.Per, p.AlwaysFree)
	case !sourcePattern.MatchString(p.Source):
		return fmt.Errorf("price %q: source must be a page of AWS, got %q", p.Key, p.Source)
	case p.Seen != "general knowledge" && !strings.HasPrefix(p.Seen, "https://"):
		return fmt.Errorf(`price %q: seen must be a page or "general knowledge", got %q`, p.Key, p.Seen)
	case !datePattern.MatchString(p.Date):
		return fmt.Errorf("price %q: date must be YYYY, YYYY-MM or YYYY-MM-DD, got %q", p.Key, p.Date)
	}
	return nil
}

// parsePrices reads a price table. Unknown keys, keys given twice and prices
// without source, date or unit are refused.
func parsePrices(text string) (Prices, error) {
	var prices Prices
	if _, err := decode(text, &prices); err != nil {
		return Prices{}, fmt.Errorf("prices: %w", err)
	}
	if prices.Region == "" {
		return Prices{}, fmt.Errorf("prices: the table needs a region")
	}
	known := map[string]bool{}
	for i := range prices.List {
		p := &prices.List[i]
		if p.Per == 0 {
			p.Per = 1
		}
		if err := p.check(); err != nil {
			return Prices{}, err
		}
		if known[p.Key] {
			return Prices{}, fmt.Errorf("price %q is given twice", p.Key)
		}
		known[p.Key] = true
	}
	return prices, nil
}

// parseUsage reads a usage table. Unknown keys, absent ones and negative
// numbers are refused.
func parseUsage(text string) (Usage, error) {
	var usage Usage
	meta, err := decode(text, &usage)
	if err != nil {
		return Usage{}, fmt.Errorf("usage: %w", err)
	}
	tables := reflect.ValueOf(usage)
	for i := range tables.NumField() {
		table := tables.Type().Field(i).Tag.Get("toml")
		for j := range tables.Field(i).NumField() {
			key := tables.Field(i).Type().Field(j).Tag.Get("toml")
			if !meta.IsDefined(table, key) {
				return Usage{}, fmt.Errorf("usage: [%s] lacks %s", table, key)
			}
			if v := tables.Field(i).Field(j).Float(); v < 0 {
				return Usage{}, fmt.Errorf("usage: [%s] %s must not be below 0, got %v", table, key, v)
			}
		}
	}
	return usage, nil
}

func decode(text string, v any) (toml.MetaData, error) {
	meta, err := toml.Decode(text, v)
	if err != nil {
		return meta, err
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return meta, fmt.Errorf("unknown key %q", unknown[0])
	}
	return meta, nil
}
