package lifecycle

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// The options of git push -o that are commands here.
const (
	optionPromote   = "promote"    // =ENVIRONMENT: promote the versions that the push brings
	optionNoDeliver = "no-deliver" // record the events of the push and deliver none of them
)

// pushOptions are the options of one push.
type pushOptions struct {
	promote   []registry.EnvironmentName
	noDeliver bool
	unknown   []string
}

// readOptions reads them. The error is what is wrong with a command, in words for the user.
func readOptions(texts []string) (pushOptions, error) {
	var o pushOptions
	for _, text := range texts {
		name, value, _ := strings.Cut(text, "=")
		switch {
		case name == optionPromote:
			env, err := registry.ParseEnvironmentName(value)
			if err != nil {
				return o, refuse("the push option %q names no environment\nName one that the policy of the model has: -o promote=staging", text)
			}
			if !slices.Contains(o.promote, env) {
				o.promote = append(o.promote, env)
			}
		case text == optionNoDeliver:
			o.noDeliver = true
		default:
			o.unknown = append(o.unknown, text)
		}
	}
	return o, nil
}

// checkOptions refuses a push whose commands its sender may not give.
func checkOptions(by Request, m registry.Model, p Push) error {
	options, err := readOptions(p.Options())
	if err != nil {
		return err
	}
	if m.ID == "" {
		// The model is not there yet: what counts is the role.
		m.ID = "new"
	}
	if len(options.promote) > 0 && access.Authorize(by.Identity, access.Promote, &m) != nil {
		return refuse("you may push to %s and not promote\nPush without -o promote, and ask a maintainer to promote the version.", m.Name)
	}
	if options.noDeliver && access.Authorize(by.Identity, access.Withhold, &m) != nil {
		return refuse("only maintainers of %s push without telling anybody\nPush without -o no-deliver.", m.Name)
	}
	return nil
}

// optionsOf are the options of a push that was admitted.
func optionsOf(i registry.PushIntent) pushOptions {
	options, err := readOptions(i.Options)
	if err != nil {
		return pushOptions{unknown: i.Options} // of an older version of the program, which did not know them
	}
	return options
}

// withheld reports whether whoever moved a ref to its value wanted nobody to be told.
func (r *reconciliation) withheld(ref string) bool {
	for _, i := range slices.Backward(r.intents) {
		if slices.ContainsFunc(i.Updates, func(u registry.RefUpdate) bool { return u.Ref == ref && u.New == r.refs[ref].ID }) {
			return optionsOf(i).noDeliver
		}
	}
	return false
}

// allWithheld reports whether every push that is finished now wanted nobody to be told, so that nobody is told
// of what followed from them either.
func (r *reconciliation) allWithheld() bool {
	return len(r.finished) > 0 && !slices.ContainsFunc(r.finished, func(i registry.PushIntent) bool { return !optionsOf(i).noDeliver })
}

// promotePushed carries out the promotions that a push asked for. What keeps one from it is told to the user: the push
// itself went well.
func (r *reconciliation) promotePushed(ctx context.Context, i registry.PushIntent) error {
	options := optionsOf(i)
	if len(options.promote) == 0 {
		return nil
	}
	var tags []registry.Tag
	for _, u := range i.Updates {
		if tag, ok := registry.VersionOf(u.Ref); ok && u.New != "" && u.New == r.refs[u.Ref].ID {
			tags = append(tags, tag)
		}
	}
	if len(tags) == 0 {
		r.note("nothing was promoted: the push brought no version; push its tag too, or run: herdbook promote %s VERSION --env %s", r.m.Name, options.promote[0])
	}
	slices.SortFunc(tags, registry.Tag.Compare)
	for _, tag := range tags {
		for _, env := range options.promote {
			if err := r.promoteOne(ctx, i, env, tag, options.noDeliver); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *reconciliation) promoteOne(ctx context.Context, i registry.PushIntent, env registry.EnvironmentName, tag registry.Tag, quietly bool) error {
	state, err := r.Index.Environment(ctx, r.m.ID, env)
	if err != nil {
		return err
	}
	if state.Version() == tag {
		r.note("%s is in %s", tag, env)
		return nil
	}
	// Whether they may was asked when the push came. A push that is reconciled a second time finds the promotion done.
	by := Request{Identity: access.Identity{Name: i.Actor}, ID: i.PushID, Key: "push " + i.PushID + " " + env.String() + " " + tag.String()}
	_, err = r.promoteLocked(ctx, by, r.m, env, Promotion{Version: tag, Reason: "asked for by git push -o " + optionPromote + "=" + env.String(), withheld: quietly})
	var closed *registry.GateClosedError
	switch {
	case err == nil:
		r.note("%s was promoted to %s", tag, env)
	case errors.As(err, &closed):
		r.note("%s was not promoted to %s: %s", tag, env, closed.Verdict.Reason())
	case errors.Is(err, registry.ErrConflict), errors.Is(err, registry.ErrNotFound):
		r.note("%s was not promoted to %s: %v", tag, env, err)
	default:
		return err
	}
	return nil
}
