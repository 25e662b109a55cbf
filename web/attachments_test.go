package web

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
)

func TestNewImportances(t *testing.T) {
	feature := func(name string, value float64) registry.FeatureImportance {
		return registry.FeatureImportance{Name: name, Importance: &value}
	}
	var many []registry.FeatureImportance
	for i := range maxImportances + 3 {
		many = append(many, feature(fmt.Sprint(i), 1))
	}
	tests := []struct {
		name     string
		features []registry.FeatureImportance
		want     []importance
		more     int
	}{
		{"by size, whatever the sign", []registry.FeatureImportance{feature("a", 1), feature("b", -4), feature("c", 2)}, []importance{
			{Name: "b", Value: -4, Magnitude: 1}, {Name: "c", Value: 2, Magnitude: 0.5}, {Name: "a", Value: 1, Magnitude: 0.25},
		}, 0},
		{"nothing matters", []registry.FeatureImportance{feature("a", 0), feature("b", 0)}, []importance{{Name: "a"}, {Name: "b"}}, 0},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(importances{Label: "fraud", Shown: tt.want, More: tt.more}, newImportances("fraud", tt.features)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
	if got := newImportances("", many); len(got.Shown) != maxImportances || got.More != 3 {
		t.Errorf("newImportances of %d features shows %d and counts %d more, want %d and 3", len(many), len(got.Shown), got.More, maxImportances)
	}
}
