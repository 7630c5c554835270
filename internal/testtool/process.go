//go:build unix

package testtool

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"time"
)

const (
	startTime = 30 * time.Second
	askEvery  = 20 * time.Millisecond
)

// A Process is a program that runs, and ends with the test at the latest.
type Process struct {
	cmd   *exec.Cmd
	ended chan struct{}
	log   string // file
}

// Start runs a program whose output is added to a file.
func Start(cmd *exec.Cmd, log string) (*Process, error) {
	cmd.SysProcAttr = endWithUs()
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = out, out
	p := &Process{cmd: cmd, ended: make(chan struct{}), log: log}
	started := make(chan error)
	go p.live(out, started)
	return p, <-started
}

// live keeps the thread that starts the process until it ends: the system ends
// the process with that thread, and so with the test.
func (p *Process) live(out *os.File, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer out.Close()
	defer close(p.ended)
	err := p.cmd.Start()
	started <- err
	if err == nil {
		_ = p.cmd.Wait() // it is killed
	}
}

// Answers waits until the process answers an HTTP request with 200.
func (p *Process) Answers(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		err := ask(ctx, url)
		if err == nil {
			return nil
		}
		select {
		case <-p.ended:
			err = errors.Join(errors.New("it ended"), err)
		case <-ctx.Done():
			err = errors.Join(ctx.Err(), err)
		case <-tick.C:
			continue
		}
		text, _ := os.ReadFile(p.log)
		return fmt.Errorf("%s does not answer: %w\n%s", p.cmd.Path, err, text)
	}
}

func ask(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return errors.Join(err, resp.Body.Close())
}

// Kill ends the process, as a loss of power would.
func (p *Process) Kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.ended
	return nil
}

// FreeAddress returns an address of this machine, 127.0.0.1:PORT, at which nobody
// listens now. No outgoing connection gets its port meanwhile: it is below those of
// net.ipv4.ip_local_port_range, and below those that regions draw.
func FreeAddress() (addr string, err error) {
	var l net.Listener
	for range 100 {
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10_000+rand.IntN(10_000))); err == nil {
			return l.Addr().String(), l.Close()
		}
	}
	return "", err
}
