package main

import (
	"fmt"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

const quietEvery = 5 * time.Second

// bar shows how far something has come, on stderr: a bar on a terminal, else a
// line every few seconds.
type bar struct {
	app   *app
	what  string
	last  time.Time
	first time.Time
	pool  *mpb.Progress
	mpb   *mpb.Bar
}

func (a *app) newBar(what string) *bar {
	now := time.Now()
	return &bar{app: a, what: what, first: now, last: now}
}

// set shows done of total bytes.
func (b *bar) set(done, total int64) {
	if b.app.terminal {
		b.draw(done, total)
		return
	}
	now := time.Now()
	if now.Sub(b.last) < quietEvery {
		return
	}
	line := fmt.Sprintf("%s: %s of %s", b.what, short(done), short(total))
	if total > 0 {
		line += fmt.Sprintf(" (%d %%)", done*100/total)
	}
	if rate := float64(done) / now.Sub(b.first).Seconds(); rate > 0 {
		line += fmt.Sprintf(", %s/s", short(int64(rate)))
	}
	fmt.Fprintln(b.app.stderr, line)
	b.last = now
}

func (b *bar) draw(done, total int64) {
	if b.mpb == nil {
		b.pool = mpb.New(mpb.WithOutput(b.app.stderr), mpb.WithRefreshRate(200*time.Millisecond))
		b.mpb = b.pool.AddBar(total,
			mpb.PrependDecorators(decor.Name(b.what+" "), decor.CountersKibiByte("% .1f of % .1f")),
			mpb.AppendDecorators(decor.Any(speed(time.Now(), done))))
	}
	b.mpb.SetTotal(total, false)
	b.mpb.SetCurrent(done)
}

// speed shows the rate since a time when done bytes were done, and how long it
// takes yet at that rate.
func speed(since time.Time, done int64) func(decor.Statistics) string {
	return func(s decor.Statistics) string {
		took := time.Since(since).Seconds()
		if s.Current <= done || took <= 0 {
			return ""
		}
		rate := float64(s.Current-done) / took
		left := time.Duration(float64(s.Total-s.Current) / rate * float64(time.Second))
		return fmt.Sprintf("%s/s, %s left", short(int64(rate)), left.Round(time.Second))
	}
}

// end takes the bar away, full when all went well.
func (b *bar) end(ok bool) {
	if b.mpb == nil {
		return
	}
	if ok {
		b.mpb.SetTotal(-1, true)
	} else {
		b.mpb.Abort(false)
	}
	b.pool.Wait()
}
