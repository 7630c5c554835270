// Command snapferry is the whole of Snapferry in one binary: the server of a
// region, the command line that talks to regions, and the tools that need no
// region. One file holds one command; docs/cli.md lists them with their flags
// and exit codes.
//
// Only this package reads the environment, and only it knows all rooms: it
// reads the configuration, makes the parts of a region and introduces them to
// each other (region.go).
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"
)

func main() { os.Exit(execute(os.Args[1:])) }

// execute runs the program of this process and returns its exit code.
func execute(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	a := &app{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		getenv: os.Getenv, home: os.UserHomeDir, executable: os.Executable,
		terminal: term.IsTerminal(int(os.Stderr.Fd())),
	}
	return a.run(ctx, args)
}

// app is one run of the program: what it has of the world, and the flags that
// all commands share.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	executable     func() (string, error)
	home           func() (string, error)
	terminal       bool // stderr is one

	config  string
	region  string
	account string
	output  string
	began   bool // a command took over from the parser of the command line
}
