package gate

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
)

// filled sets every field of a value, at any depth, to something that JSON does not leave out.
func filled(v reflect.Value, text string) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		filled(v.Elem(), text)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Date(2026, 3, 4, 5, 6, 7, 890_000, time.UTC)))
			return
		}
		for i := range v.NumField() {
			filled(v.Field(i), v.Type().Field(i).Name)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		filled(v.Index(0), text)
		filled(v.Index(1), text+"2")
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		one := reflect.New(v.Type().Elem()).Elem()
		filled(one, text)
		v.SetMapIndex(reflect.ValueOf("yes").Convert(v.Type().Key()), one)
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int64:
		v.SetInt(7)
	case reflect.Uint8:
		v.SetUint(3)
	case reflect.Float64:
		v.SetFloat(0.25)
	default:
		panic("no rule for a " + v.Type().String())
	}
}

// What an expression sees of an evaluation is its JSON, but for what is left out on purpose; a field that is added later fails here.
func TestEvaluationObjectIsItsJSON(t *testing.T) {
	var full registry.Evaluation
	filled(reflect.ValueOf(&full).Elem(), "")
	for _, e := range []registry.Evaluation{
		full, {}, {ID: "e-1", Metrics: map[string]float64{}, Confusion: &registry.Confusion{}, Harness: &registry.Harness{}, Outcomes: &registry.Outcomes{Examples: digest.FromString("x")}},
	} {
		brief := e.Brief()
		brief.Intervals = nil
		if brief.Confusion != nil && brief.Confusion.Labels == nil {
			brief.Confusion = &registry.Confusion{Labels: []string{}, Matrix: [][]int64{}} // JSON has null for nil
		}
		data, err := json.Marshal(brief)
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]any{}
		if err := json.Unmarshal(data, &want); err != nil {
			t.Fatal(err)
		}
		delete(want, "metrics")
		if len(e.Metrics) > 0 {
			want["metrics"] = e.Metrics
		}
		if e.Samples != nil {
			want["samples"] = *e.Samples
		}
		if diff := cmp.Diff(want, evaluationObject(&e)); diff != "" {
			t.Errorf("evaluationObject (-JSON +got):\n%s", diff)
		}
	}
	if got := evaluationObject(nil); len(got) != 0 {
		t.Errorf("evaluationObject(nil) = %v, want nothing", got)
	}
}
