// Package kmstest is what every driver of master keys must do: Conform runs a
// driver through it.
package kmstest

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/kms"
	"github.com/snapferry/snapferry/seal"
)

// Harness is a driver with its service, as a test has it. Functions that are nil
// say that the service cannot do that.
type Harness struct {
	Driver  kms.Driver
	Key     string // that may be used
	Other   string // another one
	Missing string // that there is none
	Binds   bool   // the service refuses a key in another context itself

	Disable func(key string)
	Enable  func(key string)
	// Down has the service refuse connections until Up.
	Down func()
	Up   func()
	// Fail has the next n requests answered as a service does that is overloaded.
	Fail func(n int)
	// Hang has all requests wait without an answer until Up.
	Hang func()
	// Deny has the service refuse the caller until Up.
	Deny func()
}

// contexts are two places of data keys.
var contexts = [2]seal.Context{
	{Account: "acct-00000000000000001", Chain: snapferry.ChainID{1}, Region: "east"},
	{Account: "acct-00000000000000001", Chain: snapferry.ChainID{2}, Region: "east"},
}

// Conform runs the driver that open gives, a fresh one for each part.
func Conform(t *testing.T, open func(t *testing.T) *Harness) {
	for _, part := range []struct {
		name string
		run  func(*suite)
	}{
		{"round trip", (*suite).roundTrip},
		{"bound to its context", (*suite).bound},
		{"bound to its key", (*suite).boundToKey},
		{"damage", (*suite).damage},
		{"no such key", (*suite).missing},
		{"disabled", (*suite).disabled},
		{"rotation", (*suite).rotation},
		{"many at once", (*suite).concurrent},
		{"context ended", (*suite).cancelled},
		{"down", (*suite).down},
		{"overloaded", (*suite).overloaded},
		{"hanging", (*suite).hanging},
		{"denied", (*suite).denied},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(&suite{T: t, Harness: open(t)}) })
	}
}

type suite struct {
	*testing.T
	*Harness
}

func (s *suite) ctx() context.Context {
	ctx, cancel := context.WithTimeout(s.Context(), 20*time.Second)
	s.Cleanup(cancel)
	return ctx
}

func (s *suite) want(what string, err error, kinds ...snapferry.Kind) {
	s.Helper()
	for _, k := range kinds {
		if snapferry.IsKind(err, k) {
			return
		}
	}
	s.Errorf("%s: got %v, want one of %v", what, err, kinds)
}

func (s *suite) made(key string, c seal.Context) (plain, wrapped []byte) {
	s.Helper()
	dst := make([]byte, 0, seal.KeySize)
	plain, wrapped, err := s.Driver.NewDataKey(s.ctx(), key, dst, c)
	if err != nil {
		s.Fatal(err)
	}
	if len(plain) != seal.KeySize {
		s.Fatalf("a data key of %d bytes", len(plain))
	}
	return plain, wrapped
}

func (s *suite) unwrap(key string, wrapped []byte, c seal.Context) ([]byte, error) {
	return s.Driver.Unwrap(s.ctx(), key, make([]byte, 0, seal.KeySize), wrapped, c)
}

func (s *suite) opens(what, key string, wrapped []byte, c seal.Context, want []byte) {
	s.Helper()
	got, err := s.unwrap(key, wrapped, c)
	if err != nil {
		s.Errorf("%s: %v", what, err)
	} else if !bytes.Equal(got, want) {
		s.Errorf("%s: another key", what)
	}
}

func (s *suite) roundTrip() {
	a, wrappedA := s.made(s.Key, contexts[0])
	b, wrappedB := s.made(s.Key, contexts[0])
	if bytes.Equal(a, b) || bytes.Equal(wrappedA, wrappedB) || bytes.Equal(a, make([]byte, len(a))) {
		s.Error("two data keys are equal, or zero")
	}
	if bytes.Contains(wrappedA, a) {
		s.Error("the key lies in its wrapped form")
	}
	s.opens("unwrap", s.Key, wrappedA, contexts[0], a)
	got, err := s.Driver.Unwrap(s.ctx(), s.Key, append(make([]byte, 0, 64), "front"...), wrappedB, contexts[0])
	if err != nil || !bytes.Equal(got, append([]byte("front"), b...)) {
		s.Errorf("unwrap behind other bytes: %d bytes, %v", len(got), err)
	}
	d, err := s.Driver.Describe(s.ctx(), s.Key)
	if err != nil || !d.Usable || d.Name == "" {
		s.Errorf("describe: %+v, %v", d, err)
	}
	if err := s.Driver.Health(s.ctx()); err != nil {
		s.Errorf("health: %v", err)
	}
}

func (s *suite) bound() {
	if !s.Binds {
		s.Skip("the service binds no context: the keyring does")
	}
	_, wrapped := s.made(s.Key, contexts[0])
	for what, c := range map[string]seal.Context{
		"another chain":   contexts[1],
		"another account": {Account: "acct-00000000000000002", Chain: contexts[0].Chain, Region: "east"},
		"another region":  {Account: contexts[0].Account, Chain: contexts[0].Chain, Region: "west"},
	} {
		_, err := s.unwrap(s.Key, wrapped, c)
		s.want("unwrap in "+what, err, snapferry.Corrupt)
		_, err = s.Driver.Rewrap(s.ctx(), s.Key, wrapped, c)
		s.want("rewrap in "+what, err, snapferry.Corrupt)
	}
}

func (s *suite) boundToKey() {
	plain, wrapped := s.made(s.Key, contexts[0])
	_, err := s.unwrap(s.Other, wrapped, contexts[0])
	s.want("unwrap with another key", err, snapferry.Corrupt)
	s.opens("unwrap", s.Key, wrapped, contexts[0], plain)
}

func (s *suite) damage() {
	plain, wrapped := s.made(s.Key, contexts[0])
	step := max(1, len(wrapped)/40)
	for i := 0; i < len(wrapped); i += step {
		bad := bytes.Clone(wrapped)
		bad[i] ^= 1
		got, err := s.unwrap(s.Key, bad, contexts[0])
		if err == nil && bytes.Equal(got, plain) {
			continue // a byte that says nothing, as of an encoding
		}
		s.want("a flipped byte", err, snapferry.Corrupt)
		_, err = s.unwrap(s.Key, wrapped[:i], contexts[0])
		s.want("cut off", err, snapferry.Corrupt)
	}
}

func (s *suite) missing() {
	_, wrapped := s.made(s.Key, contexts[0])
	_, _, err := s.Driver.NewDataKey(s.ctx(), s.Missing, make([]byte, 0, seal.KeySize), contexts[0])
	s.want("new data key", err, snapferry.KeyUnusable)
	_, err = s.unwrap(s.Missing, wrapped, contexts[0])
	s.want("unwrap", err, snapferry.KeyUnusable, snapferry.Corrupt)
	_, err = s.Driver.Describe(s.ctx(), s.Missing)
	s.want("describe", err, snapferry.NotFound)
}

func (s *suite) disabled() {
	if s.Disable == nil {
		s.Skip("keys of this service cannot be disabled")
	}
	plain, wrapped := s.made(s.Key, contexts[0])
	s.Disable(s.Key)
	_, _, err := s.Driver.NewDataKey(s.ctx(), s.Key, make([]byte, 0, seal.KeySize), contexts[0])
	s.want("new data key", err, snapferry.KeyUnusable)
	_, err = s.unwrap(s.Key, wrapped, contexts[0])
	s.want("unwrap", err, snapferry.KeyUnusable)
	_, err = s.Driver.Rewrap(s.ctx(), s.Key, wrapped, contexts[0])
	s.want("rewrap", err, snapferry.KeyUnusable)
	if d, err := s.Driver.Describe(s.ctx(), s.Key); err != nil || d.Usable || d.State == "" {
		s.Errorf("describe: %+v, %v", d, err)
	}
	s.Enable(s.Key)
	s.opens("unwrap after it was enabled", s.Key, wrapped, contexts[0], plain)
}

func (s *suite) rotation() {
	r, ok := s.Driver.(kms.Rotator)
	plain, wrapped := s.made(s.Key, contexts[0])
	if ok {
		if err := r.Rotate(s.ctx(), s.Key); err != nil {
			s.Fatal(err)
		}
		s.opens("unwrap after a rotation", s.Key, wrapped, contexts[0], plain)
	}
	again, err := s.Driver.Rewrap(s.ctx(), s.Key, wrapped, contexts[0])
	if err != nil {
		s.Fatal(err)
	}
	if ok && bytes.Equal(again, wrapped) {
		s.Error("wrapped again, it is the same")
	}
	s.opens("unwrap what was wrapped again", s.Key, again, contexts[0], plain)
	s.opens("unwrap the old form", s.Key, wrapped, contexts[0], plain)
}

func (s *suite) concurrent() {
	plain, wrapped := s.made(s.Key, contexts[0])
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for range 4 {
				s.opens("unwrap", s.Key, wrapped, contexts[0], plain)
			}
		})
	}
	all.Wait()
}

func (s *suite) cancelled() {
	_, wrapped := s.made(s.Key, contexts[0])
	ctx, cancel := context.WithCancel(s.ctx())
	cancel()
	if s.Down == nil {
		s.Skip("no service is asked")
	}
	start := time.Now()
	_, err := s.Driver.Unwrap(ctx, s.Key, make([]byte, 0, seal.KeySize), wrapped, contexts[0])
	s.want("unwrap", err, snapferry.Unavailable, snapferry.Cancelled)
	if d := time.Since(start); d > 5*time.Second {
		s.Errorf("it took %v", d)
	}
}

func (s *suite) down() {
	if s.Down == nil {
		s.Skip("there is no service")
	}
	plain, wrapped := s.made(s.Key, contexts[0])
	s.Down()
	ctx, cancel := context.WithTimeout(s.ctx(), 2*time.Second)
	defer cancel()
	_, err := s.Driver.Unwrap(ctx, s.Key, make([]byte, 0, seal.KeySize), wrapped, contexts[0])
	s.want("unwrap", err, snapferry.Unavailable)
	hctx, hcancel := context.WithTimeout(s.ctx(), 2*time.Second)
	defer hcancel()
	s.want("health", s.Driver.Health(hctx), snapferry.Unavailable)
	s.Up()
	s.opens("unwrap when it is back", s.Key, wrapped, contexts[0], plain)
}

func (s *suite) overloaded() {
	if s.Fail == nil {
		s.Skip("there is no service")
	}
	plain, wrapped := s.made(s.Key, contexts[0])
	s.Fail(2)
	s.opens("unwrap after two refusals", s.Key, wrapped, contexts[0], plain)
	s.Fail(1 << 20)
	ctx, cancel := context.WithTimeout(s.ctx(), 2*time.Second)
	defer cancel()
	_, err := s.Driver.Unwrap(ctx, s.Key, make([]byte, 0, seal.KeySize), wrapped, contexts[0])
	s.want("unwrap while it refuses", err, snapferry.Unavailable)
	s.Up()
}

func (s *suite) hanging() {
	if s.Hang == nil {
		s.Skip("there is no service")
	}
	_, wrapped := s.made(s.Key, contexts[0])
	s.Hang()
	defer s.Up()
	ctx, cancel := context.WithTimeout(s.ctx(), 500*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := s.Driver.Unwrap(ctx, s.Key, make([]byte, 0, seal.KeySize), wrapped, contexts[0])
	s.want("unwrap", err, snapferry.Unavailable, snapferry.Cancelled)
	if d := time.Since(start); d > 5*time.Second {
		s.Errorf("it took %v", d)
	}
}

func (s *suite) denied() {
	if s.Deny == nil {
		s.Skip("there is no service")
	}
	_, wrapped := s.made(s.Key, contexts[0])
	s.Deny()
	defer s.Up()
	_, err := s.unwrap(s.Key, wrapped, contexts[0])
	s.want("unwrap", err, snapferry.Denied)
}
