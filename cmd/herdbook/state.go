package main

import (
	"context"
	"fmt"
	"io"

	"github.com/herdbook/herdbook/api"
	"github.com/herdbook/herdbook/registry"
)

// stateChange are the arguments of the commands that say what may be done with a version.
type stateChange struct {
	Model  string `arg:"" help:"NAMESPACE/NAME."`
	Tag    string `arg:"" name:"version" help:"The version, such as v1.2.0."`
	Reason string `name:"reason" short:"m" required:"" help:"Why: whoever asks for the version reads it." placeholder:"TEXT"`
	remote
}

// set brings the version into another state.
func (c stateChange) set(ctx context.Context, t terminal, state registry.VersionState, forceLive bool) error {
	m, err := registry.ParseModelName(c.Model)
	if err != nil {
		return err
	}
	tag, err := registry.ParseTag(c.Tag)
	if err != nil {
		return err
	}
	server, err := c.connect()
	if err != nil {
		return err
	}
	done, err := server.SetState(ctx, m, tag, api.NewState{State: string(state), Reason: c.Reason, ForceLive: forceLive})
	if err != nil {
		return err
	}
	return c.show(t, done, func(w io.Writer) {
		fmt.Fprintf(w, "%s %s is %s, it was %s\n", m, done.Version, done.State, done.Previous)
	})
}

type deprecateCommand struct{ stateChange }

// Help describes the command.
func (deprecateCommand) Help() string {
	return "The version stays usable; who looks at it is warned, and the hooks are told.\n\n" +
		"Example:\n\n  herdbook deprecate acme/fraud v1.0.0 --reason 'v2 is better in every slice'"
}

// Run deprecates.
func (c deprecateCommand) Run(ctx context.Context, t terminal) error {
	return c.set(ctx, t, registry.Deprecated, false)
}

type quarantineCommand struct{ stateChange }

// Help describes the command.
func (quarantineCommand) Help() string {
	return "All its gates close, and nobody can roll back to it. Where it runs it stays until somebody rolls back. 'herdbook reinstate' undoes it.\n\n" +
		"Example:\n\n  herdbook quarantine acme/fraud v1.2.0 --reason 'trained on leaked labels?'"
}

// Run quarantines.
func (c quarantineCommand) Run(ctx context.Context, t terminal) error {
	return c.set(ctx, t, registry.Quarantined, false)
}

type revokeCommand struct {
	ForceLive bool `name:"force-live" help:"Also while the version is in an environment."`
	stateChange
}

// Help describes the command.
func (revokeCommand) Help() string {
	return "For ever: OCI clients are refused its artifact and its image, and the files that no other version has. Its Git history and its LFS objects stay readable, " +
		"and what was copied elsewhere is there still; the hooks are told.\n\nExample:\n\n  herdbook revoke acme/fraud v1.2.0 --reason 'holds personal data'"
}

// Run revokes.
func (c revokeCommand) Run(ctx context.Context, t terminal) error {
	return c.set(ctx, t, registry.Revoked, c.ForceLive)
}

type reinstateCommand struct{ stateChange }

// Help describes the command.
func (reinstateCommand) Help() string {
	return "A deprecated or quarantined version is as any other again. One that is revoked stays so.\n\n" +
		"Example:\n\n  herdbook reinstate acme/fraud v1.2.0 --reason 'the labels were fine'"
}

// Run reinstates.
func (c reinstateCommand) Run(ctx context.Context, t terminal) error {
	return c.set(ctx, t, registry.Published, false)
}

// freezing are the arguments of freeze and unfreeze.
type freezing struct {
	Model  string `arg:"" help:"NAMESPACE/NAME."`
	Env    string `name:"env" short:"e" required:"" help:"The environment." placeholder:"NAME"`
	Reason string `name:"reason" short:"m" help:"Why, for the record." placeholder:"TEXT"`
	remote
}

func (c freezing) set(ctx context.Context, t terminal, frozen bool) error {
	m, err := registry.ParseModelName(c.Model)
	if err != nil {
		return err
	}
	server, err := c.connect()
	if err != nil {
		return err
	}
	env, err := server.Freeze(ctx, m, c.Env, api.Freezing{Frozen: &frozen, Reason: c.Reason})
	if err != nil {
		return err
	}
	return c.show(t, env, func(w io.Writer) {
		if frozen {
			fmt.Fprintf(w, "%s of %s is frozen: nothing is promoted there until it is unfrozen\n", env.Name, m)
			return
		}
		fmt.Fprintf(w, "%s of %s is not frozen any more\n", env.Name, m)
	})
}

type freezeCommand struct{ freezing }

// Help describes the command.
func (freezeCommand) Help() string {
	return "Nothing is promoted to the environment, by nobody and not automatically either, until it is unfrozen. A rollback is possible.\n\n" +
		"Example:\n\n  herdbook freeze acme/fraud --env production --reason 'year end'"
}

// Run freezes.
func (c freezeCommand) Run(ctx context.Context, t terminal) error { return c.set(ctx, t, true) }

type unfreezeCommand struct{ freezing }

// Help describes the command.
func (unfreezeCommand) Help() string {
	return "What waited for it and passes its gates is promoted at once, where the policy promotes automatically.\n\n" +
		"Example:\n\n  herdbook unfreeze acme/fraud --env production"
}

// Run unfreezes.
func (c unfreezeCommand) Run(ctx context.Context, t terminal) error { return c.set(ctx, t, false) }
