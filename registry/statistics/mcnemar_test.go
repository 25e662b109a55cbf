package statistics_test

import (
	"fmt"
	"math"
	"testing"

	"github.com/herdbook/herdbook/registry/statistics"
)

// The first six and their two-sided p-values are those of statsmodels (test_mcnemar_exact, test_mcnemar_chisquare), there from
// VassarStats and R. 1 and 7 are of Fagerland, Lydersen, Laake 2013, table 6: exact 0.070, mid-p 0.039, chi-square with correction 0.077.
// 150 and 86 are the ratings of a president in A. Agresti, "Categorical data analysis", of which R's mcnemar.test says 16.818 and 4.115e-05.
// The rest was computed in exact fractions.
func TestMcNemar(t *testing.T) {
	const none = -1 // is not compared
	tests := []struct {
		lost, gained                         int64
		lower, differ, mid, chiSquare, pMany float64
	}{
		{121, 59, 2.217225e-6, 4.434449e-6, none, 20.67222, 5.450095e-06},
		{70, 59, 0.189344, 0.378688, none, 0.7751938, 0.3786151},
		{80, 59, 0.044726, 0.089452, none, 2.87769784, 0.08981434},
		{30, 60, 0.999514, 0.002060, none, none, none},
		{10, 30, 0.999660, 0.002221, none, none, none},
		{10, 10, 0.588099, 1, 0.911901, 0, 1},
		{1, 7, 0.996094, 0.070313, 0.039063, 3.125, 0.0771},
		{7, 1, 0.035156, 0.070313, 0.039063, 3.125, 0.0771},
		{150, 86, 1.857968e-5, 3.715936e-5, none, 16.818, 4.114562e-05},
		{5, 0, 0.03125, 0.0625, 0.03125, none, none},
		{0, 5, 1, 0.0625, 0.03125, none, none},
		{0, 0, 1, 1, 0.5, 0, 1},
		{10_150, 9850, 0.017246, none, none, none, none},
	}
	for _, tt := range tests {
		d := statistics.Discordant{Lost: tt.lost, Gained: tt.gained}
		chiSquare, many := d.DifferMany()
		for _, c := range []struct {
			name      string
			got, want float64
		}{{"Lower", d.Lower(), tt.lower}, {"Differ", d.Differ(), tt.differ}, {"DifferMid", d.DifferMid(), tt.mid}, {"chi-square of DifferMany", chiSquare, tt.chiSquare}, {"p of DifferMany", many, tt.pMany}} {
			if c.want != none && math.Abs(c.got-c.want) > max(6e-7, 1e-4*c.want) {
				t.Errorf("%s of %+v = %v, want %v", c.name, d, c.got, c.want)
			}
		}
	}
}

// The p-value falls as more is lost, and the sum of all chances is 1, up to the most examples there can be.
func TestMcNemarOfMany(t *testing.T) {
	const n = 1 << 20
	last := 1.1
	for lost := int64(0); lost <= n; lost += n / 64 {
		got := statistics.Discordant{Lost: lost, Gained: n - lost}.Lower()
		if !(got >= 0) || got > last {
			t.Errorf("Lower of %d lost and %d gained = %v, want at most %v", lost, n-lost, got, last)
		}
		last = got
		atLeast, atMost := statistics.Discordant{Lost: lost, Gained: n - lost}.Lower(), statistics.Discordant{Lost: n - lost, Gained: lost}.Lower()
		if sum := atLeast + atMost; sum < 1-1e-9 {
			t.Errorf("%d or more and %d or fewer have together the chance %v, want 1 or more", lost, lost, sum)
		}
	}
	// Here the normal distribution is close: 2 standard deviations of 512 above the mean, with half a step of correction.
	got, want := statistics.Discordant{Lost: n/2 + 1024, Gained: n/2 - 1024}.Lower(), math.Erfc((1024-0.5)/512/math.Sqrt2)/2
	if math.Abs(got-want) > 1e-6 {
		t.Errorf("Lower of 2 standard deviations = %v, want %v", got, want)
	}
}

func TestCompare(t *testing.T) {
	tests := []struct {
		before, after []byte
		want          statistics.Discordant
		ok            bool
	}{
		{nil, nil, statistics.Discordant{}, true},
		{[]byte{0b1011}, []byte{0b0110}, statistics.Discordant{Lost: 2, Gained: 1}, true},
		{[]byte{1, 0, 0, 0, 0, 0, 0, 0, 0x80, 0, 1}, []byte{0, 0, 0, 0, 0, 0, 0, 0x0f, 0, 3, 1}, statistics.Discordant{Lost: 2, Gained: 6}, true},
		{[]byte{1}, []byte{1, 0}, statistics.Discordant{}, false},
	}
	for _, tt := range tests {
		if got, ok := statistics.Compare(tt.before, tt.after); got != tt.want || ok != tt.ok {
			t.Errorf("Compare(%x, %x) = %+v, %t, want %+v, %t", tt.before, tt.after, got, ok, tt.want, tt.ok)
		}
	}
}

func FuzzCompare(f *testing.F) {
	f.Add([]byte("before"), []byte("after!"))
	f.Add([]byte("twelve bytes"), []byte("\xff\x00\x01"))
	f.Fuzz(func(t *testing.T, before, after []byte) {
		d, ok := statistics.Compare(before, after)
		back, _ := statistics.Compare(after, before)
		if ok != (len(before) == len(after)) || d.Lost != back.Gained || d.Gained != back.Lost || d.Lost+d.Gained > int64(8*len(before)) {
			t.Errorf("Compare(%x, %x) = %+v, %t, and the other way round %+v", before, after, d, ok, back)
		}
		if p := d.Lower(); !(p >= 0 && p <= 1) {
			t.Errorf("Lower of %+v = %v", d, p)
		}
	})
}

func BenchmarkMcNemar(b *testing.B) {
	for _, n := range []int{1000, 1 << 20} {
		before, after := make([]byte, n/8), make([]byte, n/8)
		for i := range before {
			before[i], after[i] = byte(i*7), byte(i*11)
		}
		b.Run(fmt.Sprintf("examples=%d", n), func(b *testing.B) {
			for b.Loop() {
				if d, ok := statistics.Compare(before, after); !ok || d.Lower() < 0 {
					b.Fatal(d, ok)
				}
			}
		})
	}
}
