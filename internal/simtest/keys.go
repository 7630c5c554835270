package simtest

import (
	"math/rand/v2"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/control"
)

// In a world with keys snapshots and volumes are encrypted, or not, copies go from key to
// key, and keys are rotated, and disabled for a while. What is drawn for that comes from
// a source of its own: all else is as in the world of the same seed that has none.

// keyStream tells the draws about keys from the others of a seed.
const keyStream = 1 << 32

// worldKey is the alias of the key that each account has in each region.
const worldKey = "one"

// giveKeys makes keys, and has what some accounts make be encrypted without being asked.
func (w *World) giveKeys() {
	w.tb.Helper()
	w.keys = rand.New(rand.NewPCG(w.seed, keyStream+worldSteps+1))
	for _, s := range w.sites {
		for _, account := range s.accounts {
			_, err := s.Control.CreateKey(w.ctx, account, control.KeyRequest{Alias: worldKey})
			w.judge("create key", err)
			_, err = s.Control.SetEncryptByDefault(w.ctx, account, w.keys.IntN(2) == 0, "")
			w.judge("encrypt by default", err)
		}
	}
}

// sealing draws the key of what is made; of something that is encrypted only such
// things are made.
func (w *World) sealing(encrypted bool) (s control.Sealing) {
	if w.keys == nil {
		return s
	}
	switch n := w.keys.IntN(4); {
	case n == 0:
		s.Key = worldKey
	case n == 1 || encrypted:
		s.Encrypt = true
	}
	return s
}

// turnKey does something to a key, now and then.
func (w *World) turnKey() {
	w.tb.Helper()
	if w.keys == nil || w.keys.IntN(5) > 0 {
		return
	}
	s, account := w.sites[w.keys.IntN(len(w.sites))], w.keys.IntN(worldAccounts)
	action := []control.KeyAction{control.KeyDisable, control.KeyDisable, control.KeyEnable, control.KeyRotate}[w.keys.IntN(4)]
	all, err := s.Control.Keys(w.ctx, s.accounts[account])
	if err != nil || len(all) == 0 {
		w.judge("list keys", err)
		return
	}
	k := all[w.keys.IntN(len(all))]
	w.log("%s key %s, %s, of %s in %s", action, k.ID, k.State, accountNames[account], s.Name)
	if action == control.KeyDisable {
		w.locked = true
		w.locks++
	}
	_, err = s.Control.ChangeKey(w.ctx, s.accounts[account], string(k.ID), action)
	w.judge(string(action)+" key", err, snapferry.Conflict, snapferry.KeyUnusable)
}

// unlock enables all keys.
func (w *World) unlock() {
	w.tb.Helper()
	if w.keys == nil {
		return
	}
	w.eachKey(func(s *site, account snapferry.AccountID, k snapferry.Key) error {
		if k.State == snapferry.KeyEnabled {
			return nil
		}
		_, err := s.Control.ChangeKey(w.ctx, account, string(k.ID), control.KeyEnable)
		return err
	})
	w.locked = false
}

// lock disables all keys.
func (w *World) lock() {
	w.tb.Helper()
	w.log("all keys are disabled")
	w.locked = true
	w.locks++
	w.eachKey(func(s *site, account snapferry.AccountID, k snapferry.Key) error {
		if k.State == snapferry.KeyDisabled {
			return nil
		}
		_, err := s.Control.ChangeKey(w.ctx, account, string(k.ID), control.KeyDisable)
		return err
	})
}

func (w *World) eachKey(fn func(s *site, account snapferry.AccountID, k snapferry.Key) error) {
	w.tb.Helper()
	for _, s := range w.sites {
		for _, account := range s.accounts {
			all, err := s.Control.Keys(w.ctx, account)
			for _, k := range all {
				if err == nil {
					err = fn(s, account, k)
				}
			}
			if err != nil {
				w.fail("keys of %s: %v", s.Name, err)
			}
		}
	}
}
