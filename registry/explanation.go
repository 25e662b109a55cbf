package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
)

// ExplanationType is the media type of an attachment that explains a model.
const ExplanationType = "application/vnd.herdbook.explanation.v1+json"

// Limits of an explanation.
const (
	MaxExplanationBytes    = 8 << 20
	MaxExplanationFeatures = 10_000 // over all classes together
)

// Explanation says how much each feature matters to what a model predicts: over all classes, for each, or both. The importances are in the unit
// of the method. Its JSON Schema is docs/schemas/explanation-v1.json.
type Explanation struct {
	Method   string              `json:"method"`             // such as "shap" or "permutation"
	Baseline string              `json:"baseline,omitempty"` // what the importances are relative to
	Features []FeatureImportance `json:"features,omitempty"` // over all classes
	Classes  []ClassExplanation  `json:"classes,omitempty"`
}

// ClassExplanation is what an Explanation says of one label.
type ClassExplanation struct {
	Label    string              `json:"label"`
	Features []FeatureImportance `json:"features"`
}

// FeatureImportance is how much one feature matters. Importance is negative where it misleads the model.
type FeatureImportance struct {
	Name       string   `json:"name"`
	Importance *float64 `json:"importance"`
	Std        *float64 `json:"std,omitempty"` // standard deviation
}

// ParseExplanation reads an explanation, strictly. The error is a [FieldError] that names the field in it.
func ParseExplanation(data []byte) (Explanation, error) {
	var e Explanation
	if len(data) > MaxExplanationBytes {
		return e, Invalid("", "an explanation has at most %d bytes, and this has more", MaxExplanationBytes)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) {
			return e, Invalid(wrong.Field, "%s cannot be of the JSON type %s", orWhole(wrong.Field), wrong.Value)
		}
		return e, Invalid("", "it is not an explanation: %s", strings.TrimPrefix(err.Error(), "json: "))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return e, Invalid("", "something follows the explanation")
	}
	return e, e.check()
}

func orWhole(field string) string {
	if field == "" {
		return "the explanation"
	}
	return field
}

func (e *Explanation) check() error {
	if err := checkName("method", e.Method, true); err != nil {
		return err
	}
	if err := checkName("baseline", e.Baseline, false); err != nil {
		return err
	}
	if len(e.Features) == 0 && len(e.Classes) == 0 {
		return Invalid("features", "an explanation has features, classes or both")
	}
	if len(e.Classes) > MaxLabels {
		return Invalid("classes", "an explanation has at most %d classes, got %d", MaxLabels, len(e.Classes))
	}
	total := 0
	if err := checkFeatures("features", e.Features, &total); err != nil {
		return err
	}
	labels := map[string]bool{}
	for i, c := range e.Classes {
		field := fmt.Sprintf("classes[%d]", i)
		if err := checkName(field+".label", c.Label, true); err != nil {
			return err
		}
		if labels[c.Label] {
			return Invalid(field+".label", "the label %q stands twice", clip(c.Label))
		}
		labels[c.Label] = true
		if len(c.Features) == 0 {
			return Invalid(field+".features", "the class %s has no features", clip(c.Label))
		}
		if err := checkFeatures(field+".features", c.Features, &total); err != nil {
			return err
		}
	}
	return nil
}

func checkFeatures(field string, features []FeatureImportance, total *int) error {
	if *total += len(features); *total > MaxExplanationFeatures {
		return Invalid(field, "an explanation has at most %d features, over all classes together", MaxExplanationFeatures)
	}
	names := make(map[string]bool, len(features))
	for i, f := range features {
		at := fmt.Sprintf("%s[%d]", field, i)
		if err := checkName(at+".name", f.Name, true); err != nil {
			return err
		}
		if names[f.Name] {
			return Invalid(at+".name", "the feature %q stands twice", clip(f.Name))
		}
		names[f.Name] = true
		switch {
		case f.Importance == nil:
			return Invalid(at+".importance", "the feature %s has no importance", clip(f.Name))
		case f.Std != nil && (*f.Std < 0 || math.IsNaN(*f.Std)):
			return Invalid(at+".std", "a standard deviation is not negative")
		}
	}
	return nil
}

func checkName(field, name string, needed bool) error {
	if name == "" && needed {
		return Invalid(field, "%s is missing", field)
	}
	if why := badText(name); why != "" {
		return Invalid(field, "%s %s", field, why)
	}
	return nil
}
