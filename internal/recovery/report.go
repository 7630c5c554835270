package recovery

import (
	"cmp"
	"fmt"
	"slices"
	"sync"

	"github.com/snapferry/snapferry"
)

// Report is what a recovery found and made.
type Report struct {
	Region    snapferry.RegionName `json:"region"`
	Merge     bool                 `json:"merge"`
	DryRun    bool                 `json:"dry_run"`
	Complete  bool                 `json:"complete"`         // nothing is missing or damaged
	Dump      uint64               `json:"dump,omitempty"`   // number of the dump that was used; 0: none
	NewKey    bool                 `json:"new_key"`          // the region signs with a new key from now on
	Backup    string               `json:"backup,omitempty"` // where the metadata is that was merged
	Records   int64                `json:"records"`          // version records in the bucket
	Versions  int64                `json:"versions"`
	Ghosts    int64                `json:"ghosts"`    // of these, deleted ones that others still need
	Forwarded int64                `json:"forwarded"` // versions that were being removed
	Broken    int64                `json:"broken"`    // versions of which something is missing
	Snapshots int64                `json:"snapshots"` // ready ones
	Failed    int64                `json:"failed"`    // snapshots that could not be brought back whole
	Pins      int64                `json:"pins"`
	Chains    int64                `json:"chains"`
	Volumes   int64                `json:"volumes"`
	Accounts  int64                `json:"accounts"`
	Segments  int64                `json:"segments"`
	Objects   int64                `json:"objects"`
	Garbage   Garbage              `json:"garbage"`
	Reads     Reads                `json:"reads"`
	// Deleted are snapshots that the old metadata had and the bucket has not:
	// they were deleted since, as something proves or the operator says.
	Deleted []snapferry.SnapshotID `json:"deleted"`
	// Missing are those of which nothing proves that: the record of their version
	// may have been lost. They are taken for deleted, and nothing is reclaimed.
	Missing    []snapferry.SnapshotID `json:"missing"`
	Findings   []Finding              `json:"findings"`
	NotRebuilt []string               `json:"not_rebuilt"` // in words
}

// Garbage is objects that nothing needs; the region removes them.
type Garbage struct {
	Objects int64 `json:"objects"`
	Bytes   int64 `json:"bytes"`
}

// Reads counts what this run read from the bucket.
type Reads struct {
	Requests int64 `json:"requests"`
	Bytes    int64 `json:"bytes"`
}

// The severities of findings.
const (
	Damage = "damage" // something is missing or wrong
	Note   = "note"   // worth knowing; nothing is lost
)

// Finding is one thing that was not as it should be.
type Finding struct {
	Severity  string                 `json:"severity"`
	Object    string                 `json:"object,omitempty"`
	Version   string                 `json:"version,omitempty"`
	Problem   string                 `json:"problem"`
	Snapshots []snapferry.SnapshotID `json:"snapshots,omitempty"` // that suffer
}

// maxFindings bounds a report.
const maxFindings = 10_000

// findings collects what is found, from several goroutines.
type findings struct {
	mu  sync.Mutex
	all []Finding
}

func (f *findings) add(x Finding) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = append(f.all, x)
}

func (f *findings) damage(object string, version snapferry.VersionID, format string, args ...any) {
	f.add(Finding{Severity: Damage, Object: object, Version: versionText(version), Problem: fmt.Sprintf(format, args...)})
}

func (f *findings) note(object string, version snapferry.VersionID, format string, args ...any) {
	f.add(Finding{Severity: Note, Object: object, Version: versionText(version), Problem: fmt.Sprintf(format, args...)})
}

func versionText(id snapferry.VersionID) string {
	if id.IsZero() {
		return ""
	}
	return id.String()
}

// sorted returns the findings in order, damage first.
func (f *findings) sorted() []Finding {
	f.mu.Lock()
	defer f.mu.Unlock()
	slices.SortStableFunc(f.all, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Severity, b.Severity), cmp.Compare(a.Object, b.Object), cmp.Compare(a.Version, b.Version), cmp.Compare(a.Problem, b.Problem))
	})
	if len(f.all) == 0 {
		return []Finding{}
	}
	if more := len(f.all) - maxFindings; more > 0 {
		return append(f.all[:maxFindings:maxFindings], Finding{Severity: Damage, Problem: fmt.Sprintf("%d more findings are not listed", more)})
	}
	return f.all
}

func (f *findings) damaged() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.ContainsFunc(f.all, func(x Finding) bool { return x.Severity == Damage })
}
