//go:build !linux

package kms

import "github.com/snapferry/snapferry/seal"

// secrets is memory for data keys.
type secrets struct{}

func (s *secrets) get() (*[seal.KeySize]byte, error) { return new([seal.KeySize]byte), nil }

// put clears a key.
func (s *secrets) put(k *[seal.KeySize]byte) { clear(k[:]) }
