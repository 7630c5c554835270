package main

import (
	"context"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
)

func (a *app) keyCommand() *cobra.Command {
	return group("key", "Make and manage the master keys of a region",
		a.keyCreateCommand(), a.keyListCommand(), a.keyShowCommand(), a.keyAliasCommand(),
		a.keyChangeCommand("enable", "Let a disabled key be used again",
			`Let a disabled key be used again. What waited for it goes on.`),
		a.keyChangeCommand("disable", "Have nothing opened any more with a key",
			`Have nothing opened any more with a key, at once: snapshots under it cannot be read,
and copies under it stop, until it is enabled. What it sealed stays.`),
		a.keyChangeCommand("rotate", "Give a key a new generation",
			`Give a key a new generation. The data keys under it are wrapped again; no data
moves. Each volume has one data key for ever: copy it to another key if that must
change.`),
		a.keyScheduleCommand(),
		a.keyChangeCommand("cancel-deletion", "Keep a key that waits for its deletion",
			`Keep a key that waits for its deletion. It is disabled then.`),
	)
}

func (a *app) keyCreateCommand() *cobra.Command {
	var req client.KeyRequest
	cmd := &cobra.Command{
		Use: "create", Short: "Make a master key, or take one of a key service", Args: cobra.NoArgs,
		Long: `Make a master key in the region's own keyring, or take one that is in a key service
which the region's configuration names (keys): then a data key is made with it and
opened, before the key is kept.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withKey(cmd.Context(), func(ctx context.Context, c *client.Client) (client.Key, error) { return c.CreateKey(ctx, req) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Alias, "alias", "", "name for the key")
	f.StringVar(&req.Description, "description", "", "what it is for")
	f.StringVar(&req.Driver, "driver", "", "key service that has it: aws, azure, transit or alibaba (default: the region says)")
	f.StringVar(&req.External, "external", "", "name of the key there, as an ARN (default: a new key in the region's keyring)")
	return cmd
}

// withKey connects, and prints the key that fn returns.
func (a *app) withKey(ctx context.Context, fn func(context.Context, *client.Client) (client.Key, error)) error {
	c, _, err := a.connect("")
	if err != nil {
		return err
	}
	defer c.Close()
	k, err := fn(ctx, c)
	if err != nil {
		return err
	}
	return a.print(k, func(p *printer) { keyText(p, k) })
}

func keyText(p *printer, k client.Key) {
	rotated, deletes := "", ""
	if !k.Rotated.IsZero() {
		rotated = timeText(k.Rotated)
	}
	if !k.DeletesAt.IsZero() {
		deletes = timeText(k.DeletesAt)
	}
	fields := []string{
		"id", string(k.ID), "region", string(k.Region), "kind", string(k.Kind), "aliases", strings.Join(k.Aliases, " "), "description", k.Description,
		"state", string(k.State), "driver", k.Driver, "external", k.External, "generation", strconv.FormatUint(uint64(k.Generation), 10),
		"created", timeText(k.Created), "rotated", rotated, "deletes at", deletes,
	}
	if u := k.Use; u != nil {
		fields = append(fields, "chains", strconv.Itoa(u.Chains))
		if u.Behind > 0 {
			fields = append(fields, "to be wrapped", strconv.Itoa(u.Behind))
		}
		for _, v := range u.Volumes {
			fields = append(fields, "volume", string(v))
		}
		for _, s := range u.Snapshots {
			fields = append(fields, "snapshot", string(s))
		}
	}
	p.fields(fields...)
}

func (a *app) keyListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the keys of the account", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, _, err := a.connect("")
			if err != nil {
				return err
			}
			defer c.Close()
			all, err := c.Keys(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(client.KeyList{Keys: all}, func(p *printer) {
				rows := make([][]string, 0, len(all))
				for _, k := range all {
					rows = append(rows, []string{string(k.ID), string(k.Kind), string(k.State), k.Driver, strconv.FormatUint(uint64(k.Generation), 10), timeText(k.Created), strings.Join(k.Aliases, " ")})
				}
				p.table([]string{"ID", "KIND", "STATE", "DRIVER", "GENERATION", "CREATED", "ALIASES"}, rows)
			})
		},
	}
}

func (a *app) keyShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show KEY", Short: "Show a key, by its id or an alias, and what is sealed with it", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withKey(cmd.Context(), func(ctx context.Context, c *client.Client) (client.Key, error) { return c.Key(ctx, args[0]) })
		},
	}
}

func (a *app) keyChangeCommand(action, short, long string) *cobra.Command {
	return &cobra.Command{
		Use: action + " KEY", Short: short, Long: long, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withKey(cmd.Context(), func(ctx context.Context, c *client.Client) (client.Key, error) {
				return c.ChangeKey(ctx, args[0], action)
			})
		},
	}
}

func (a *app) keyScheduleCommand() *cobra.Command {
	days := snapferry.MaxKeyDeletionDays
	cmd := &cobra.Command{
		Use: "schedule-deletion KEY", Short: "Delete a key for ever, in some days", Args: cobra.ExactArgs(1),
		Long: `Delete a key for ever, in some days. Nothing is opened with it from now on, and
nothing that it sealed can be opened after its deletion, by anybody.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withKey(cmd.Context(), func(ctx context.Context, c *client.Client) (client.Key, error) {
				return c.ScheduleKeyDeletion(ctx, args[0], days)
			})
		},
	}
	cmd.Flags().IntVar(&days, "days", days, "days until then, 7 to 30")
	return cmd
}

func (a *app) keyAliasCommand() *cobra.Command {
	var req client.AliasRequest
	var remove bool
	cmd := &cobra.Command{
		Use: "alias KEY ALIAS | alias --remove ALIAS", Short: "Give a key an alias, or take it away", Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if remove != (len(args) == 1) {
				return snapferry.Errorf(snapferry.Invalid, "give a key and an alias, or --remove and an alias")
			}
			return a.withKey(cmd.Context(), func(ctx context.Context, c *client.Client) (client.Key, error) {
				if remove {
					return c.RemoveKeyAlias(ctx, args[0])
				}
				req.Alias = args[1]
				return c.SetKeyAlias(ctx, args[0], req)
			})
		},
	}
	cmd.Flags().BoolVar(&req.Move, "move", false, "take it from the key that has it")
	cmd.Flags().BoolVar(&remove, "remove", false, "take it away")
	return cmd
}

// sealFlags say how something new is sealed.
type sealFlags struct{ client.Sealing }

func (s *sealFlags) register(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&s.Encrypt, "encrypt", false, "encrypt it, with the account's default key or its service key")
	cmd.Flags().StringVar(&s.Key, "key", "", "encrypt it with this key: id or alias in the region that gets it")
}
