package registry_test

import (
	"testing"

	"github.com/herdbook/herdbook/registry"
)

func TestQuotaCovers(t *testing.T) {
	for _, test := range []struct {
		pattern, model string
		want           bool
	}{
		{"acme/*", "acme/fraud", true},
		{"acme/*", "acme2/fraud", false},
		{"*/*", "acme/fraud", true},
		{"acme/fraud", "acme/fraud", true},
		{"acme/fr[", "acme/fraud", false},
		{"", "acme/fraud", false},
		{"acme/*", "acme/tools/scan", true},
		{"acme/tools", "acme/tools/scan/deep", true},
		{"acme/*/scan", "acme/tools/scan", true},
		{"acme/scan", "acme/tools/scan", false},
		{"*", "busybox", true},
		{"*/*", "busybox", false},
	} {
		if got := (registry.Quota{Models: test.pattern}).Covers(test.model); got != test.want {
			t.Errorf("quota of %q covers %s = %t, want %t", test.pattern, test.model, got, test.want)
		}
	}
}

func TestByteSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536 << 10: "1.5 MiB", 1 << 30: "1.0 GiB", 5 << 40: "5.0 TiB", 1<<63 - 1: "8.0 EiB",
	} {
		if got := registry.ByteSize(n); got != want {
			t.Errorf("ByteSize(%d) = %q, want %q", n, got, want)
		}
	}
}
