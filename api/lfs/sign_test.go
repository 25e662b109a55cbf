package lfs_test

import (
	"maps"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/herdbook/herdbook/api/lfs"
)

var (
	signer = lfs.NewSigner([]byte("0123456789abcdef0123456789abcdef"))
	signed = lfs.Grant{Method: "PUT", Model: "acme/fraud", ModelID: "model-1", OID: strings.Repeat("a", 64), Size: 42, TokenID: "t1"}
	at     = time.Unix(1_700_000_000, 0)
)

// asked is what a request alone says of the grant that it needs.
func asked(g lfs.Grant) lfs.Grant { return lfs.Grant{Method: g.Method, Model: g.Model, OID: g.OID} }

func TestVerify(t *testing.T) {
	const minute = time.Minute
	set := func(name, value string) func(url.Values) { return func(q url.Values) { q.Set(name, value) } }
	tests := []struct {
		name   string
		change func(url.Values)
		asked  func(*lfs.Grant)
		now    time.Time
		want   bool
	}{
		{"as it was signed", nil, nil, at, true},
		{"at the last moment", nil, nil, at.Add(15 * minute), true},
		{"a moment later", nil, nil, at.Add(15*minute + time.Second), false},
		{"by a clock that is behind", nil, nil, at.Add(-time.Hour), true},
		{"longer", set("expires", strconv.FormatInt(at.Add(24*time.Hour).Unix(), 10)), nil, at, false},
		{"for ever", set("expires", ""), nil, at, false},
		{"a time that is none", set("expires", "1e10"), nil, at, false},
		{"another size", set("size", "43"), nil, at, false},
		{"no size", set("size", ""), nil, at, false},
		{"another token", set("token", "t2"), nil, at, false},
		{"no token", set("token", ""), nil, at, false},
		{"another model of that name", set("model", "model-2"), nil, at, false},
		{"no model of that name", set("model", ""), nil, at, false},
		{"no signature", set("signature", ""), nil, at, false},
		{"half a signature", func(q url.Values) { q.Set("signature", q.Get("signature")[:32]) }, nil, at, false},
		{"signature in upper case", func(q url.Values) { q.Set("signature", strings.ToUpper(q.Get("signature"))) }, nil, at, false},
		{"another method", nil, func(g *lfs.Grant) { g.Method = "GET" }, at, false},
		{"another model", nil, func(g *lfs.Grant) { g.Model = "acme/other" }, at, false},
		{"no model", nil, func(g *lfs.Grant) { g.Model = "" }, at, false},
		{"another object", nil, func(g *lfs.Grant) { g.OID = strings.Repeat("b", 64) }, at, false},
	}
	for _, test := range tests {
		q := signer.Sign(signed, at)
		if test.change != nil {
			test.change(q)
		}
		g := asked(signed)
		if test.asked != nil {
			test.asked(&g)
		}
		got, ok := signer.Verify(q, g, test.now)
		if ok != test.want || (ok && got != signed) {
			t.Errorf("%s: Verify(%v) = %+v, %v, want %v", test.name, q, got, ok, test.want)
		}
	}
	if _, ok := lfs.NewSigner([]byte("another key of another server!!!")).Verify(signer.Sign(signed, at), asked(signed), at); ok {
		t.Error("Verify with another key = true, want false")
	}
}

// TestSignaturesDiffer: two grants that differ in anything have two signatures, also where one
// field ends in what another begins with.
func TestSignaturesDiffer(t *testing.T) {
	grants := []lfs.Grant{signed}
	for _, change := range []func(*lfs.Grant){
		func(g *lfs.Grant) { g.Method = "GET" },
		func(g *lfs.Grant) { g.Model = "acme/other" },
		func(g *lfs.Grant) { g.ModelID = "model-12" },
		func(g *lfs.Grant) { g.ModelID = "" },
		func(g *lfs.Grant) { g.OID = strings.Repeat("b", 64) },
		func(g *lfs.Grant) { g.Size = 4 },
		func(g *lfs.Grant) { g.TokenID = "" },
		func(g *lfs.Grant) { g.TokenID = "t\n1" },
	} {
		g := signed
		change(&g)
		grants = append(grants, g)
	}
	seen := map[string]lfs.Grant{}
	for _, g := range grants {
		signature := signer.Sign(g, at).Get("signature")
		if before, ok := seen[signature]; ok {
			t.Errorf("%+v and %+v have the same signature", before, g)
		}
		seen[signature] = g
	}
}

// FuzzVerify: whatever the query, what is taken is what was signed.
func FuzzVerify(f *testing.F) {
	good := signer.Sign(signed, at)
	f.Add(good.Encode(), at.Unix())
	f.Add(good.Encode()+"&token=t2", at.Unix())
	f.Add("token=t2&"+good.Encode(), at.Unix())
	f.Add(strings.Replace(good.Encode(), "size=42", "size=%2b42", 1), at.Unix())
	f.Add("signature=x", int64(0))
	for name := range maps.Keys(good) {
		changed := maps.Clone(good)
		delete(changed, name)
		f.Add(changed.Encode(), at.Unix())
	}
	f.Fuzz(func(t *testing.T, query string, now int64) {
		q, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		got, ok := signer.Verify(q, asked(signed), time.Unix(now, 0))
		if ok && (got != signed || now > at.Add(15*time.Minute).Unix()) {
			t.Errorf("Verify(%q) at %d = %+v, true; only %+v until %d was signed", query, now, got, signed, at.Add(15*time.Minute).Unix())
		}
	})
}
