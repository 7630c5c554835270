package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/snapferry/snapferry"
)

const (
	readyTime = time.Minute      // a region may take that long to start
	endTime   = 20 * time.Second // and that long to end
	lastLines = 5                // of its log, shown when it dies
)

// process is a region in a process of its own.
type process struct {
	name  snapferry.RegionName
	log   string // file
	cmd   *exec.Cmd
	stdin io.Closer // the region ends when this does, however we end
	ready chan struct{}
	done  chan struct{} // closed when it ended
	err   error         // why it ended; after done
}

// startProcess starts "serve" with a configuration and more arguments. What it
// prints goes to the file log.
func (a *app) startProcess(name snapferry.RegionName, config, log string, more ...string) (*process, error) {
	exe, err := a.executable()
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Internal, "find this program: %w", err)
	}
	out, err := os.OpenFile(log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fileError("open", log, err)
	}
	p := &process{name: name, log: log, ready: make(chan struct{}), done: make(chan struct{})}
	p.cmd = exec.Command(exe, append([]string{"serve", "--end-with-stdin", "--config", config}, more...)...)
	// A Ctrl-C of the terminal is for us alone; we end the regions.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stderr, err := p.cmd.StderrPipe()
	if err == nil {
		p.stdin, err = p.cmd.StdinPipe()
	}
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		return nil, errors.Join(snapferry.Errorf(snapferry.Internal, "start region %s: %w", name, err), out.Close())
	}
	go p.watch(stderr, out)
	return p, nil
}

// watch copies what the process prints to its log until it ends.
func (p *process) watch(stderr io.Reader, log *os.File) {
	defer close(p.done)
	defer log.Close()
	var last []string
	lines := bufio.NewReader(stderr)
	for serving := false; ; {
		line, err := lines.ReadString('\n')
		if line != "" {
			fmt.Fprint(log, line) // a full disk must not end the region
			if last = append(last, strings.TrimSpace(line)); len(last) > lastLines {
				last = last[1:]
			}
		}
		if !serving && strings.HasPrefix(line, readyMark) {
			serving = true
			close(p.ready)
		}
		if err != nil {
			break
		}
	}
	err := p.cmd.Wait()
	what := "ended"
	if err != nil {
		what = "ended: " + err.Error()
	}
	e := snapferry.Errorf(childKind(p.cmd.ProcessState.ExitCode()), "region %s %s", p.name, what)
	p.err = e.WithHint("its log %s ends with:\n  %s", p.log, strings.Join(last, "\n  "))
}

// childKind is the Kind of the error with which another run of this program
// ended.
func childKind(code int) snapferry.Kind {
	for _, k := range snapferry.Kinds() {
		if k != snapferry.Internal && exitCode(&snapferry.Error{Kind: k}) == code {
			return k
		}
	}
	return snapferry.Internal
}

// wait returns when the region serves, or why it does not.
func (p *process) wait(ctx context.Context) error {
	t := time.NewTimer(readyTime)
	defer t.Stop()
	select {
	case <-p.ready:
		return nil
	case <-p.done:
		return p.err
	case <-t.C:
		return snapferry.Errorf(snapferry.Unavailable, "region %s was not ready within %s", p.name, readyTime).WithHint("see its log %s", p.log)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// end asks the process to end, and makes it end when it does not.
func (p *process) end() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	t := time.NewTimer(endTime)
	defer t.Stop()
	select {
	case <-p.done:
	case <-t.C:
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	_ = p.stdin.Close()
}

// startAll starts all regions of a directory and waits until they serve.
func (a *app) startAll(ctx context.Context, d *devDir, regions []snapferry.RegionName, more ...string) (all []*process, err error) {
	for _, r := range regions {
		p, err := a.startProcess(r, d.configFile(r), d.path(string(r), "log"), more...)
		if err != nil {
			endAll(all)
			return nil, err
		}
		all = append(all, p)
	}
	for _, p := range all {
		if err := p.wait(ctx); err != nil {
			endAll(all)
			return nil, err
		}
	}
	return all, nil
}

func endAll(all []*process) {
	for _, p := range all {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
	}
	for _, p := range all {
		p.end()
	}
}
