package simtest

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/meta"
)

// Power cuts the power of a region at a point: a put or a delete of the bucket
// or a commit of the metadata, all counted in one row. From then on everything
// fails until Restore.
type Power struct {
	driver blob.Driver

	mu    sync.Mutex
	count int
	at    int // -1: never
	once  bool
	mode  blobtest.Mode
	off   bool
}

// NewPower returns the power of a bucket's driver.
func NewPower(d blob.Driver) *Power { return &Power{driver: d, at: -1} }

// CutAt cuts the power at the nth point from now on, counted from 0.
func (p *Power) CutAt(n int, mode blobtest.Mode) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at, p.mode, p.once = p.count+n, mode, false
}

// Cut cuts the power now.
func (p *Power) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.off = true
}

// FailAt makes only the nth point from now on fail.
func (p *Power) FailAt(n int, mode blobtest.Mode) {
	p.CutAt(n, mode)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.once = true
}

// Restore brings the power back and reports whether it had been cut, or a
// point failed.
func (p *Power) Restore() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.off || p.at >= 0 && p.count > p.at
	p.off, p.at = false, -1
	return was
}

// Off reports whether the power is cut now.
func (p *Power) Off() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.off
}

// Points returns how many points were passed.
func (p *Power) Points() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count
}

func dark() error { return snapferry.Errorf(snapferry.Unavailable, "the power is cut") }

// point passes a point; it says whether the work is done and whether that is
// told.
func (p *Power) point() (do, fail bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.off {
		return false, true
	}
	n := p.count
	p.count++
	if n != p.at {
		return true, false
	}
	p.off = !p.once
	return p.mode == blobtest.After, true
}

func (p *Power) on() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.off {
		return dark()
	}
	return nil
}

func (p *Power) mutate(fn func() error) error {
	do, fail := p.point()
	if do {
		if err := fn(); err != nil && !fail {
			return err
		}
	}
	if fail {
		return dark()
	}
	return nil
}

// Hooks are those of the metadata under this power.
func (p *Power) Hooks() meta.Hooks {
	// One answer is lost, that of the commit or of one right behind it.
	var lost atomic.Bool
	return meta.Hooks{
		BeforeCommit: func() error {
			do, fail := p.point()
			if !do {
				return dark()
			}
			if fail {
				lost.Store(true)
			}
			return nil
		},
		AfterCommit: func() error {
			if lost.CompareAndSwap(true, false) {
				return dark()
			}
			return nil
		},
	}
}

// Put implements blob.Driver.
func (p *Power) Put(ctx context.Context, name string, body []byte) error {
	return p.mutate(func() error { return p.driver.Put(ctx, name, body) })
}

// Delete implements blob.Driver.
func (p *Power) Delete(ctx context.Context, name string) error {
	return p.mutate(func() error { return p.driver.Delete(ctx, name) })
}

// ReadAt implements blob.Driver.
func (p *Power) ReadAt(ctx context.Context, name string, b []byte, off int64) (int, error) {
	if err := p.on(); err != nil {
		return 0, err
	}
	return p.driver.ReadAt(ctx, name, b, off)
}

// Size implements blob.Driver.
func (p *Power) Size(ctx context.Context, name string) (int64, error) {
	if err := p.on(); err != nil {
		return 0, err
	}
	return p.driver.Size(ctx, name)
}

// List implements blob.Driver.
func (p *Power) List(ctx context.Context, prefix, after string, fn func(blob.Info) error) error {
	if err := p.on(); err != nil {
		return err
	}
	return p.driver.List(ctx, prefix, after, fn)
}
