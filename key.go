package snapferry

import (
	"regexp"
	"slices"
	"strings"
	"time"
)

// KeyKind says whose master key it is.
type KeyKind string

// The kinds of master keys.
const (
	KeyService  KeyKind = "service"  // one of each account and region, made on first use
	KeyCustomer KeyKind = "customer" // made by a user
)

// KeyState is where a master key is in its life.
type KeyState string

// The states of a master key. Only an enabled one opens anything.
const (
	KeyEnabled         KeyState = "enabled"
	KeyDisabled        KeyState = "disabled"
	KeyPendingDeletion KeyState = "pending-deletion" // until Key.DeletesAt
	KeyDeleted         KeyState = "deleted"          // for ever: nothing that it sealed can be opened
)

var keyMoves = map[KeyState][]KeyState{
	KeyEnabled:         {KeyDisabled, KeyPendingDeletion},
	KeyDisabled:        {KeyEnabled, KeyPendingDeletion},
	KeyPendingDeletion: {KeyDisabled, KeyDeleted},
	KeyDeleted:         {},
}

// CanBecome reports whether the move from s to t is legal.
func (s KeyState) CanBecome(t KeyState) bool { return slices.Contains(keyMoves[s], t) }

// EmbeddedKeys is the Driver of master keys whose secrets are in the region's own
// keyring.
const EmbeddedKeys = "embedded"

// Key is a master key of a region: it wraps the data keys of chains.
type Key struct {
	ID          KeyID      `json:"id"`
	Account     AccountID  `json:"account"`
	Region      RegionName `json:"region"`
	Kind        KeyKind    `json:"kind"`
	Aliases     []string   `json:"aliases,omitempty"` // ascending
	Description string     `json:"description,omitempty"`
	Driver      string     `json:"driver"`             // where its secret is
	External    string     `json:"external,omitempty"` // its name there
	State       KeyState   `json:"state"`              // as the region has it
	Generation  uint32     `json:"generation"`         // from 1 on; rotations add one
	Created     time.Time  `json:"created"`
	Rotated     time.Time  `json:"rotated,omitzero"`
	DeletesAt   time.Time  `json:"deletes_at,omitzero"` // when it waits for its deletion
}

// KeyUse is what is sealed with a master key.
type KeyUse struct {
	Chains    int          `json:"chains"`
	Volumes   []VolumeID   `json:"volumes,omitempty"`   // live ones
	Snapshots []SnapshotID `json:"snapshots,omitempty"` // oldest first
	Behind    int          `json:"behind,omitempty"`    // chains that a rotation has not reached yet
}

// The limits of the time between the request for a key's deletion and the
// deletion, in days, as the clouds have them.
const (
	MinKeyDeletionDays = 7
	MaxKeyDeletionDays = 30
)

// ServiceKeyAlias is the alias of an account's service key.
const ServiceKeyAlias = "service"

var aliasPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9/_.-]{0,127}$`)

// CheckKeyAlias checks the spelling of an alias: 1 to 128 letters, digits,
// slashes, dots, underscores and hyphens, beginning with a letter or digit, and
// unlike an id. The error is of Kind Invalid.
func CheckKeyAlias(s string) error {
	if !aliasPattern.MatchString(s) || strings.HasPrefix(s, "key-") {
		if len(s) > 64 {
			s = s[:64] + "..."
		}
		return Errorf(Invalid, "%q is not an alias of a key", s).
			WithHint("use 1 to 128 letters, digits, slashes, dots, underscores and hyphens, beginning with a letter or digit, not with key-")
	}
	return nil
}
