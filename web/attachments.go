package web

import (
	"cmp"
	"context"
	"io"
	"math"
	"slices"

	"github.com/herdbook/herdbook/registry"
)

// attachmentView is an attachment of an evaluation.
type attachmentView struct {
	registry.Attachment
	Link    string // where to download it; empty when it is not here
	Picture bool   // the page shows it

	Explanation []importances // what the page shows of an explanation
	Method      string        // of it
	Baseline    string
}

// importances are the features of an explanation over all classes, or of one.
type importances struct {
	Label string // empty over all classes
	Shown []importance
	More  int // features that are not shown
}

// importance is a feature with the size of its bar.
type importance struct {
	Name      string
	Value     float64
	Std       *float64
	Magnitude float64 // of the value, as a share of the largest in the table
}

// Limits of what a page shows of explanations.
const (
	maxExplanations     = 8       // of one page
	maxExplanationBytes = 2 << 20 // longer ones are offered to be saved only
	maxClassesShown     = 10
	maxImportances      = 15 // features of one table, those that matter most
)

// explain reads an explanation. One that cannot be read, such as one that was lost, is offered to be saved like any other file: the page
// is there all the same.
func (p *Pages) explain(ctx context.Context, shown *attachmentView) {
	file, err := p.Blobs.Open(ctx, shown.Digest)
	if err != nil {
		return
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxExplanationBytes))
	if err != nil {
		return
	}
	e, err := registry.ParseExplanation(data)
	if err != nil {
		return
	}
	shown.Method, shown.Baseline = e.Method, e.Baseline
	if len(e.Features) > 0 {
		shown.Explanation = append(shown.Explanation, newImportances("", e.Features))
	}
	for _, c := range e.Classes[:min(len(e.Classes), maxClassesShown)] {
		shown.Explanation = append(shown.Explanation, newImportances(c.Label, c.Features))
	}
}

// newImportances puts the features that matter most first.
func newImportances(label string, features []registry.FeatureImportance) importances {
	table := importances{Label: label}
	for _, f := range features {
		table.Shown = append(table.Shown, importance{Name: f.Name, Value: *f.Importance, Std: f.Std})
	}
	slices.SortStableFunc(table.Shown, func(a, b importance) int { return cmp.Compare(math.Abs(b.Value), math.Abs(a.Value)) })
	table.More = max(0, len(table.Shown)-maxImportances)
	table.Shown = table.Shown[:len(table.Shown)-table.More]
	if largest := math.Abs(table.Shown[0].Value); largest > 0 {
		for i := range table.Shown {
			table.Shown[i].Magnitude = math.Abs(table.Shown[i].Value) / largest
		}
	}
	return table
}

// Pictures that a page shows; it offers all else to be saved. SVG is left out, because it may be active.
var pictures = []string{"image/png", "image/jpeg", "image/webp"}

// Limits of the pictures of one page. More are offered to be saved.
const (
	maxPictures     = 24
	maxPictureBytes = 4 << 20
)

// addAttachments says of each evaluation on the page what is attached to it. The model may not have all of it: a clone carries evaluations
// along and not their attachments.
func (p *Pages) addAttachments(ctx context.Context, view *versionView) error {
	left, explanations := maxPictures, maxExplanations
	for i := range view.Evaluations {
		e := &view.Evaluations[i]
		for _, a := range e.Evaluation.Attachments {
			shown := attachmentView{Attachment: a}
			size, err := p.Index.BlobSize(ctx, view.Model.ID, a.Digest.String())
			switch {
			case err == nil:
				shown.SizeBytes = size
				shown.Link = "/api/v1/models/" + view.Model.Name.String() + "/attachments/" + a.Digest.String()
			case !isNotFound(err):
				return err
			}
			if shown.Link != "" && slices.Contains(pictures, a.MediaType) && size <= maxPictureBytes && left > 0 {
				shown.Picture = true
				left--
			}
			if shown.Link != "" && a.MediaType == registry.ExplanationType && size <= maxExplanationBytes && explanations > 0 {
				explanations--
				p.explain(ctx, &shown)
			}
			e.Attachments = append(e.Attachments, shown)
		}
	}
	return nil
}
