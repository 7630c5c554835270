package main

import (
	"bufio"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"
)

// devs are the dev commands that scripts run.
type devs struct {
	mu   sync.Mutex
	cmds map[*testscript.TestScript]*exec.Cmd
}

func (d *devs) put(ts *testscript.TestScript, cmd *exec.Cmd) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cmds[ts] = cmd
}

func (d *devs) stop(ts *testscript.TestScript) {
	d.mu.Lock()
	cmd := d.cmds[ts]
	delete(d.cmds, ts)
	d.mu.Unlock()
	if cmd == nil {
		return
	}
	ts.Check(cmd.Process.Signal(syscall.SIGTERM))
	if err := cmd.Wait(); err != nil {
		ts.Fatalf("dev: %v", err)
	}
}

// regions starts "snapferry dev --dir DIR" with more arguments and waits
// until it serves; the end of the script, or "regions stop", stops it.
func (d *devs) regions(ts *testscript.TestScript, _ bool, args []string) {
	if args[0] == "stop" {
		d.stop(ts)
		return
	}
	dir := ts.MkAbs(args[0])
	cmd := exec.Command("snapferry", append([]string{"dev", "--dir", dir}, args[1:]...)...)
	ts.Check(startDev(cmd))
	d.put(ts, cmd)
	ts.Defer(func() { d.stop(ts) })
	ts.Setenv(configVariable, dir+"/"+devClient)
}

// startDev starts a dev command and returns when its regions serve.
func startDev(cmd *exec.Cmd) error {
	pipe, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	var seen strings.Builder
	lines := bufio.NewScanner(pipe)
	for lines.Scan() {
		fmt.Fprintln(&seen, lines.Text())
		if strings.HasPrefix(lines.Text(), "Ctrl-C stops") {
			go io.Copy(io.Discard, pipe) // until it ends
			return nil
		}
	}
	return fmt.Errorf("dev did not start: %v\n%s", cmd.Wait(), seen.String())
}
