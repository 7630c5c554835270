package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
)

// version is the version of the program.
const version = "0.1.0-dev"

const configVariable = "SNAPFERRY_CONFIG"

const rootLong = `Snapferry keeps block snapshots of disks you own and copies them between regions.

Start two regions on this machine with "snapferry dev", or see the whole of it
with "snapferry demo".

Results go to stdout, everything else to stderr. Exit codes:
` + exitHelp

// root returns the command line of the program.
func (a *app) root() *cobra.Command {
	cmd := &cobra.Command{
		Use: "snapferry", Short: "Block snapshots of disks you own, copied between regions", Long: rootLong,
		SilenceUsage: true, SilenceErrors: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.SetOut(a.stdout)
	cmd.SetErr(a.stderr)
	cmd.CompletionOptions.HiddenDefaultCmd = true
	flags := cmd.PersistentFlags()
	flags.StringVar(&a.config, "config", "", "configuration: client.yaml, or that of the region for serve and bucket check (default $"+configVariable+", else ~/.config/snapferry/client.yaml)")
	flags.StringVar(&a.region, "region", "", "region to talk to (default: default_region of the configuration)")
	flags.StringVar(&a.account, "account", "", "account to act as (default: default_account of the configuration)")
	flags.StringVarP(&a.output, "output", "o", "text", "form of results: text or json")
	cmd.PersistentPreRunE = func(*cobra.Command, []string) error {
		if a.output != "text" && a.output != "json" {
			out := a.output
			a.output = "text"
			return snapferry.Errorf(snapferry.Invalid, "unknown form of output %q", out).WithHint("use -o text or -o json")
		}
		a.began = true
		return nil
	}
	cmd.AddCommand(a.serveCommand(), a.devCommand(), a.demoCommand(), a.volumeCommand(), a.snapshotCommand(), a.copiesCommand(), a.limitCommand(), a.keyCommand(), a.regionCommand(), a.digestCommand(),
		a.fsckCommand(), a.recoverCommand(), a.bucketCommand(), a.inspectCommand(), a.pkiCommand(), a.versionCommand())
	return cmd
}

// group returns a command that only has commands below it.
func group(use, short string, below ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(below...)
	return cmd
}

// run parses args, runs the command and returns the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	cmd := a.root()
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	if !a.began && snapferry.KindOf(err) == snapferry.Internal {
		err = snapferry.Errorf(snapferry.Invalid, "%s", firstLine(err)).WithHint("see: snapferry --help")
	}
	if ctx.Err() != nil {
		fmt.Fprintln(a.stderr, "snapferry: interrupted")
		return exitInterrupted
	}
	a.tell(err)
	return exitCode(err)
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// tell shows an error to whoever runs the program.
func (a *app) tell(err error) {
	hint := snapferry.HintOf(err)
	if a.output == "json" {
		body := map[string]client.Error{"error": {Kind: snapferry.KindOf(err).String(), Message: err.Error(), Hint: hint}}
		_ = json.NewEncoder(a.stderr).Encode(body) // nobody is left to be told
		return
	}
	fmt.Fprintf(a.stderr, "snapferry: %s\n", err)
	if hint != "" {
		fmt.Fprintf(a.stderr, "hint: %s\n", hint)
	}
}

// print writes a result: v as JSON, or what text writes.
func (a *app) print(v any, text func(p *printer)) error {
	if a.output == "json" {
		e := json.NewEncoder(a.stdout)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return outputError(e.Encode(v))
	}
	p := &printer{w: a.stdout}
	text(p)
	return outputError(p.err)
}

func outputError(err error) error {
	if err == nil {
		return nil
	}
	return snapferry.Errorf(snapferry.Unavailable, "write the result: %w", err)
}

// fileError gives an error of the operating system about a file its Kind.
func fileError(doing, name string, err error) error {
	kind := snapferry.Internal
	switch {
	case errors.Is(err, os.ErrNotExist):
		kind = snapferry.NotFound
	case errors.Is(err, os.ErrExist):
		kind = snapferry.Exists
	case errors.Is(err, os.ErrPermission):
		kind = snapferry.Denied
	}
	var path *os.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	return snapferry.Errorf(kind, "%s %s: %w", doing, name, err)
}
