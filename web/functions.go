package web

import (
	"encoding/json"
	"fmt"
	"html/template"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
)

// functions are what templates call.
var functions = template.FuncMap{
	"moment":     moment,
	"exact":      func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
	"size":       size,
	"number":     number,
	"level":      func(share float64) string { return strconv.FormatFloat(100*share, 'g', 4, 64) + " %" },
	"grouped":    grouped,
	"short":      short,
	"values":     values,
	"abbreviate": abbreviate,
	"firstLine":  firstLine,
	"join":       strings.Join,
	"deref":      func(f *float64) float64 { return *f },
	"query":      url.QueryEscape,
	"plainValue": plainValue,
	"signed":     signed,
	"percent":    percent,
	"shape":      registry.ShapeText,
	"kind":       func(k registry.NodeKind) string { return kindNames[k] },
}

// size is a number of bytes in the largest binary unit of which there is at least one.
func size(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, units := float64(n)/1024, []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	for value >= 1024 {
		value, units = value/1024, units[1:]
	}
	if value < 10 {
		return fmt.Sprintf("%.1f %s", value, units[0])
	}
	return fmt.Sprintf("%.0f %s", value, units[0])
}

// number is a metric with as many digits as one compares.
func number(f float64) string {
	if f == float64(int64(f)) && f > -1e15 && f < 1e15 {
		return strconv.FormatInt(int64(f), 10)
	}
	return strconv.FormatFloat(f, 'g', 4, 64)
}

// grouped is a count with a thin space between each three digits.
func grouped(n int64) string {
	digits := strconv.FormatInt(n, 10)
	var b strings.Builder
	for i, d := range digits {
		if i > 0 && digits[i-1] != '-' && (len(digits)-i)%3 == 0 {
			b.WriteRune('\u2009')
		}
		b.WriteRune(d)
	}
	return b.String()
}

// short is the beginning of an id or a digest, enough to recognise it.
func short(v any) string {
	switch v := v.(type) {
	case registry.ObjectID:
		return v.Short()
	case digest.Digest:
		return v.Encoded()[:min(12, len(v.Encoded()))]
	}
	return fmt.Sprint(v)
}

// abbreviate cuts a text that nobody reads to its end, such as a hash.
func abbreviate(s string) string {
	const enough = 20
	if runes := []rune(s); len(runes) > enough+1 {
		return string(runes[:enough]) + "…"
	}
	return s
}

// firstLine is the beginning of a description, where there is room for little.
func firstLine(s string) string {
	const enough = 100
	s, _, more := strings.Cut(s, "\n")
	if runes := []rune(s); len(runes) > enough {
		s, more = string(runes[:enough]), true
	}
	if more {
		s += "…"
	}
	return s
}

// named is one value that a gate saw.
type named struct{ Name, Value string }

// values are what a gate saw, by name.
func values(seen map[string]any) []named {
	var list []named
	for _, name := range slices.Sorted(maps.Keys(seen)) {
		text := "none"
		switch v := seen[name].(type) {
		case nil:
		case float64:
			text = strconv.FormatFloat(v, 'g', 6, 64)
		case string:
			text = v
		default:
			encoded, err := json.Marshal(v)
			if err != nil {
				encoded = []byte("?")
			}
			text = string(encoded)
		}
		list = append(list, named{name, text})
	}
	return list
}

// safeLink is an address that may stand in a link: one of the web.
func safeLink(address string) string {
	u, err := url.Parse(address)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return ""
	}
	return u.String()
}
