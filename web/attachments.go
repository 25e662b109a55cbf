package web

import (
	"context"
	"slices"

	"github.com/herdbook/herdbook/registry"
)

// attachmentView is an attachment of an evaluation.
type attachmentView struct {
	registry.Attachment
	Link    string // where to download it; empty when it is not here
	Picture bool   // the page shows it
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
	left := maxPictures
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
			e.Attachments = append(e.Attachments, shown)
		}
	}
	return nil
}
