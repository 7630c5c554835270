package nativeapi

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
)

const (
	// progressTick is how often progress is told.
	progressTick = 200 * time.Millisecond
	// rateWindow is what "recent" means for a rate.
	rateWindow = 2 * time.Second
)

// A meter makes progress of numbers of bytes. It is safe for concurrent use.
type meter struct {
	mu          sync.Mutex
	started, at time.Time
	done, total int64
	rate        float64
	told        bool
}

func newMeter() *meter {
	now := time.Now()
	return &meter{started: now, at: now}
}

// sample returns the progress, which never goes back; due is false when it was
// told just now.
func (m *meter) sample(done, total int64) (p *snapferry.Progress, due bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	d := now.Sub(m.at)
	if m.told && d < progressTick {
		return nil, false
	}
	done = max(done, m.done)
	if d > 0 {
		v := float64(done-m.done) / d.Seconds()
		if m.rate > 0 {
			w := min(d.Seconds()/rateWindow.Seconds(), 1)
			v = m.rate*(1-w) + v*w
		}
		m.rate = v
	}
	m.at, m.done, m.total, m.told = now, done, max(total, done), true
	return m.progress(), true
}

func (m *meter) progress() *snapferry.Progress {
	return &snapferry.Progress{Total: m.total, Done: m.done, Started: m.started, Rate: m.rate}
}

// withProgress runs work and tells how far done has come towards total while
// it runs. When work succeeds the last progress is the whole.
func withProgress(ctx context.Context, total int64, done *atomic.Int64, emit func(client.Event) error, work func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	m := newMeter()
	tell := func() {
		if p, due := m.sample(min(done.Load(), total), total); due {
			if err := emit(client.Event{Progress: p}); err != nil {
				cancel(err)
			}
		}
	}
	stop := make(chan struct{})
	var teller sync.WaitGroup
	teller.Go(func() {
		tick := time.NewTicker(progressTick)
		defer tick.Stop()
		for {
			tell()
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	})
	err := func() error {
		defer teller.Wait()
		defer close(stop)
		return work(ctx)
	}()
	if err != nil {
		return err
	}
	m.done, m.total = total, total
	return emit(client.Event{Progress: m.progress()})
}
