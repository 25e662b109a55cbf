package web_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/web"
)

func TestPlainValue(t *testing.T) {
	for in, want := range map[string]string{
		``: "none", `"mit"`: "mit", `["a","b"]`: `["a","b"]`, `null`: "null", `3`: "3", `"` + strings.Repeat("é", 500) + `"`: strings.Repeat("é", 400) + "…",
	} {
		if got := web.PlainValue(json.RawMessage(in)); got != want {
			t.Errorf("plainValue(%s) = %q, want %q", in, got, want)
		}
	}
}

func TestSigned(t *testing.T) {
	for in, want := range map[float64]string{0: "0", 0.04: "+0.04", -0.125: "−0.125", 2: "+2", -1e-9: "−1e-09"} {
		if got := web.Signed(in); got != want {
			t.Errorf("signed(%v) = %q, want %q", in, got, want)
		}
	}
}

func TestPercent(t *testing.T) {
	for _, tt := range []struct{ done, total, want int64 }{{0, 0, 0}, {1, 0, 0}, {0, 5, 0}, {1, 3, 33}, {3, 3, 100}, {9, 3, 100}} {
		if got := web.Percent(tt.done, tt.total); got != tt.want {
			t.Errorf("percent(%d, %d) = %d, want %d", tt.done, tt.total, got, tt.want)
		}
	}
}

func TestPrevious(t *testing.T) {
	var versions []registry.VersionRecord
	for _, tag := range []string{"v2.0.0", "v2.0.0-rc.1", "v1.0.0"} {
		versions = append(versions, registry.VersionRecord{Version: registry.Version{Tag: registry.MustTag(tag)}})
	}
	for tag, want := range map[string]string{"v2.0.0": "v2.0.0-rc.1", "v2.0.0-rc.1": "v1.0.0", "v1.0.0": "", "v1.5.0": "v1.0.0"} {
		if got := web.Previous(versions, registry.MustTag(tag)); got.String() != want {
			t.Errorf("the version before %s = %q, want %q", tag, got, want)
		}
	}
}
