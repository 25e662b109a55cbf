package web

import (
	"context"
	"slices"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// sentView is what became of the events of a version on their way to one hook.
type sentView struct {
	Hook     string
	Delivery registry.Delivery // the oldest that is still on its way, or the newest
	Last     registry.Attempt  // of it; the zero value when there was none
	Says     string            // its state in words
	Counts   []sentCount       // of all of them, when there are more
}

// sentCount is how many events have a state.
type sentCount struct {
	N     int
	State string
}

// sentTo says of each hook, by name, what became of the deliveries, which come newest first. One that is on its way hides those
// behind it, which wait for it.
func sentTo(deliveries []registry.Delivery) []sentView {
	of := map[string][]registry.Delivery{}
	for _, d := range deliveries {
		of[d.Sink] = append(of[d.Sink], d)
	}
	var views []sentView
	for hook, all := range of {
		shown := all[0]
		counts := map[string]int{}
		for _, d := range all {
			if onItsWay(d) {
				shown = d
			}
			counts[stateOf(d)]++
		}
		view := sentView{Hook: hook, Delivery: shown, Says: stateOf(shown)}
		if n := len(shown.Attempts); n > 0 {
			view.Last = shown.Attempts[n-1]
		}
		if len(all) > 1 {
			for _, state := range []string{"delivered", "waiting", "failed", "dead"} {
				if counts[state] > 0 {
					view.Counts = append(view.Counts, sentCount{counts[state], state})
				}
			}
		}
		views = append(views, view)
	}
	slices.SortFunc(views, func(a, b sentView) int { return strings.Compare(a.Hook, b.Hook) })
	return views
}

func onItsWay(d registry.Delivery) bool {
	return d.State != registry.Delivered && d.State != registry.Dead
}

// stateOf is the state of a delivery as people say it.
func stateOf(d registry.Delivery) string {
	if d.State == "" || d.State == registry.Requeued {
		return "waiting"
	}
	return string(d.State)
}

// addSent adds what was sent to hooks, for those who may know.
func (p *Pages) addSent(ctx context.Context, c echo.Context, view *versionView) error {
	id := p.Identity(c)
	if access.Authorize(id, access.ReadDeliveries, nil) != nil {
		return nil
	}
	filter := registry.DeliveryFilter{ModelID: view.Model.ID, Version: view.Version.Tag}
	deliveries, _, err := p.Index.Deliveries(ctx, id, filter, registry.Page{}) // the newest say enough; the API has all
	view.Sent = sentTo(deliveries)
	return err
}
