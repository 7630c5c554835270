package main

import "github.com/snapferry/snapferry"

const (
	exitOK          = 0
	exitInternal    = 1
	exitCancelled   = 10
	exitKeyUnusable = 11
	exitInterrupted = 130
)

const exitHelp = `  0  done
  1  a fault of the program
  2  the command or its input is wrong
  3  not found, or not of this account
  4  exists already, or is in a state that forbids it
  5  denied
  6  something needed is not reachable
  7  bytes are corrupt, or a check found damage
  8  no space left, or a limit reached
  9  made by a newer version, or not offered
 10  cancelled, or the snapshot that was waited for failed
 11  a key that is needed is disabled, waits for its deletion, or is gone
130  interrupted`

// exitCode is the exit code of an error.
func exitCode(err error) int {
	switch snapferry.KindOf(err) {
	case snapferry.Internal:
		return exitInternal
	case snapferry.Invalid:
		return 2
	case snapferry.NotFound:
		return 3
	case snapferry.Exists, snapferry.Conflict:
		return 4
	case snapferry.Denied:
		return 5
	case snapferry.Unavailable:
		return 6
	case snapferry.Corrupt:
		return 7
	case snapferry.Full:
		return 8
	case snapferry.Unsupported:
		return 9
	case snapferry.Cancelled:
		return exitCancelled
	case snapferry.KeyUnusable:
		return exitKeyUnusable
	}
	return exitInternal
}
