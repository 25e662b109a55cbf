package index

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
)

// What is kept decoded has a bound in bytes, and a value that changes counts once.
func TestMemoIsBounded(t *testing.T) {
	var m memo[string]
	value := func(text string) []byte {
		data := []byte(`"` + text + `"`)
		return append(binary.BigEndian.AppendUint32(nil, checksum("b", []byte("k"), data)), data...)
	}
	most := 0
	for i := range 3000 {
		want := strings.Repeat("x", 3000) + fmt.Sprint(i)
		var got string
		if err := m.decode("b", []byte("k"), value(want), &got); err != nil || got != want {
			t.Fatalf("decode of value %d = %.20q, %v, want what was written", i, got, err)
		}
		most = max(most, m.bytes)
	}
	if most > 4000 {
		t.Errorf("one value that changes counted for %d bytes, want its own", most)
	}
	for i := range 3000 {
		k := []byte(fmt.Sprint("k", i))
		data := []byte(`"` + strings.Repeat("x", 3000) + `"`)
		var got string
		if err := m.decode("b", k, append(binary.BigEndian.AppendUint32(nil, checksum("b", k, data)), data...), &got); err != nil {
			t.Fatal(err)
		}
		most = max(most, m.bytes)
	}
	if most > maxKindBytes+maxMemoBytes || most < maxKindBytes/2 {
		t.Errorf("3000 values of 3 KB took %d bytes at most, want about %d", most, maxKindBytes)
	}
}

func TestCatalogsAreBounded(t *testing.T) {
	var c catalogs
	hot := c.get("hot")
	c.count(hot, 1<<20)
	for i := range 200 {
		c.count(c.get(fmt.Sprint(i)), 1<<20)
		if c.get("hot") != hot {
			t.Fatalf("a catalog that is asked for again and again was let go of after %d others", i+1)
		}
		if c.bytes > maxCatalogBytes || c.used.Len() != len(c.byKey) {
			t.Fatalf("%d catalogs take %d bytes, in the order of use there are %d; want %d bytes at most", len(c.byKey), c.bytes, c.used.Len(), maxCatalogBytes)
		}
	}
	if len(c.byKey) != maxCatalogBytes>>20 {
		t.Errorf("%d catalogs of 1 MiB are kept, want %d", len(c.byKey), maxCatalogBytes>>20)
	}
	// One that is longer than all is kept alone, and what grows is counted once.
	c.count(hot, 2*maxCatalogBytes)
	if c.get("hot") != hot || len(c.byKey) != 1 || c.bytes != 2*maxCatalogBytes {
		t.Errorf("beside a long one %d are kept, %d bytes in all, want it alone", len(c.byKey)-1, c.bytes)
	}
	gone := c.get("gone")
	c.count(c.get("hot"), 2*maxCatalogBytes) // lets go of it
	c.get("gone")
	c.count(gone, 1<<20)
	if c.bytes != 2*maxCatalogBytes {
		t.Errorf("%d bytes are counted with one that was let go of while it was in use, want it left out", c.bytes)
	}
	for range 10 { // those without a size count as something, or there could be any number of them
		c.count(c.get("empty"), rowBytes)
	}
	if c.bytes > 2*maxCatalogBytes+rowBytes {
		t.Errorf("%d bytes are counted, want each once", c.bytes)
	}
}
