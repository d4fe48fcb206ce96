// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package judge

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// Schema is the schema of a Plan.
const Schema = "shisa.base-plan/1"

const (
	// MaxAge is how old a plan is at most that is carried out.
	MaxAge = time.Hour
	// maxPlanBytes bounds a plan: one of ten thousand bases with a thousand uses each.
	maxPlanBytes = 1 << 30
)

var (
	// ErrTooOld: the plan is older than an hour, or from the future.
	ErrTooOld = errors.New("is older than an hour")
	// ErrOther: the plan is of another pool.
	ErrOther = errors.New("is of another pool")
)

// Plan is what is decided about the bases of a pool (schema shisa.base-plan/1).
type Plan struct {
	Schema string `json:"schema"`
	ID     string `json:"id"`
	Pool   string `json:"pool"`
	// Bases is the directory of the bases, Node the host that decided.
	Bases string `json:"bases"`
	Node  string `json:"node"`
	// Made is when, by the clock of the file server.
	Made time.Time `json:"made,omitempty"`
	// Blockers are what speaks against every change.
	Blockers []Blocker `json:"blockers"`
	All      []Decided `json:"all"`
	// Nodes are all that were asked.
	Nodes []Said `json:"nodes"`
	// Next says what to do next, as sentences.
	Next   []string `json:"next"`
	Status []int    `json:"status"`
	// SHA256 is the digest of the document without it.
	SHA256 string `json:"sha256"`
}

// Seal gives the plan its name and its digest.
func (p *Plan) Seal() (err error) {
	if p.ID, err = plan.NewID(); err == nil {
		p.SHA256 = p.sum()
	}
	return err
}

func (p *Plan) sum() string {
	q := *p
	q.SHA256 = ""
	return digest(&q)
}

// Read reads a plan. The errors are plan.ErrNotPlan, plan.ErrNewer, plan.ErrEdited, and those of r.
func Read(r io.Reader) (*Plan, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxPlanBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read the plan: %w", err)
	}
	if len(text) > maxPlanBytes {
		return nil, fmt.Errorf("%w: longer than %d bytes", plan.ErrNotPlan, maxPlanBytes)
	}
	var head struct{ Schema string }
	if err := json.Unmarshal(text, &head); err != nil {
		return nil, fmt.Errorf("%w: %w", plan.ErrNotPlan, err)
	}
	name, _, _ := strings.Cut(Schema, "/")
	switch {
	case head.Schema == Schema:
	case strings.HasPrefix(head.Schema, name+"/"):
		return nil, fmt.Errorf("%w: its schema is %q, this one knows %q", plan.ErrNewer, head.Schema, Schema)
	default:
		return nil, fmt.Errorf("%w: its schema is %q, want %q", plan.ErrNotPlan, head.Schema, Schema)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	p := &Plan{}
	if err := d.Decode(p); err != nil {
		return nil, fmt.Errorf("%w: %w", plan.ErrNotPlan, err)
	}
	if sum := p.sum(); sum != p.SHA256 {
		return nil, fmt.Errorf("%w: its SHA-256 is %s, and it says %.64q", plan.ErrEdited, sum, p.SHA256)
	}
	for i := range p.All {
		if b := &p.All[i]; b.Verdict != Keep && (!pool.IsName(b.Name) || b.ID != "" && !pool.IsID(b.ID)) {
			return nil, fmt.Errorf("%w: it is about a base %q with the id %q", plan.ErrNotPlan, b.Name, b.ID)
		}
	}
	return p, nil
}

// Fresh returns ErrTooOld unless the plan was made within the last hour, by the clock of the file server.
func (p *Plan) Fresh(now time.Time) error {
	if age := now.Sub(p.Made); age > MaxAge || age < -time.Minute {
		return fmt.Errorf("the plan %w: it was made on %s", ErrTooOld, p.Made.Format(time.RFC3339))
	}
	return nil
}

// Of returns ErrOther unless the plan is of a pool; where that could not be read, the reason.
func (p *Plan) Of(bases string, s *pool.State) error {
	switch {
	case s.NoPolicy != nil:
		return fmt.Errorf("which pool it is: %w", s.NoPolicy)
	case s.Policy == nil:
		return fmt.Errorf("the plan %w: %s has no %s: is its storage mounted?", ErrOther, bases, pool.Dir+"/"+pool.File)
	case s.Policy.UUID != p.Pool || bases != p.Bases:
		return fmt.Errorf("the plan %w: %s in %s, and this is %s in %s", ErrOther, p.Pool, p.Bases, s.Policy.UUID, bases)
	}
	return nil
}

// With gives the bases for which the plan has a verdict.
func (p *Plan) With(v Verdict) (all []*Decided) {
	for i := range p.All {
		if p.All[i].Verdict == v {
			all = append(all, &p.All[i])
		}
	}
	return all
}

// Find gives the base of a plan that is the very same file in the same state, nil if there is none.
func (p *Plan) Find(b *Decided) *Decided {
	for i := range p.All {
		if a := &p.All[i]; a.Name == b.Name && a.ID == b.ID && a.Inode == b.Inode && a.SizeBytes == b.SizeBytes && a.State == b.State {
			return a
		}
	}
	return nil
}

// Against says in a line what speaks against a change of a base.
func (p *Plan) Against(b *Decided) string {
	var all []string
	for _, k := range slices.Concat(p.Blockers, b.Blockers) {
		text := k.Why
		if k.Node != "" {
			text = k.Node + ": " + text
		}
		if k.Path != "" && k.Rule == Unreadable {
			text = k.Path + ": " + text
		}
		all = append(all, text)
	}
	if len(all) == 0 {
		return "it is needed"
	}
	return strings.Join(all[:min(len(all), 3)], "; ") + more(max(0, len(all)-3))
}

// status says how the decision ends.
func (p *Plan) status() {
	status := []int{}
	for i := range p.All {
		if p.All[i].State == refs.Missing || p.All[i].Verdict == RestoreNow {
			status = append(status, finding.StatusFound)
		}
	}
	for _, k := range p.Blockers {
		if k.Rule == Unreadable || k.Rule == NoClock {
			status = append(status, finding.StatusCannotTell)
		}
		if k.Rule == Unfinished {
			status = append(status, finding.StatusHalfDone)
		}
	}
	p.Status = finding.OrderStatus(status...)
}

// NextQuarantine and NextPurge begin what says how a plan is made and used, which is no advice to who keeps one already.
const (
	NextQuarantine = "set aside what nobody needs: "
	NextPurge      = "remove for good: "
)

// next says what to do next. Where it could not be read which pool it is there is nothing else to do.
func (p *Plan) next(unread error) {
	has := map[Rule]bool{}
	nodes := map[string]bool{}
	look := func(all []Blocker) {
		for _, k := range all {
			has[k.Rule] = true
			switch k.Rule {
			case NoReport, Incomplete, NotSeen, NotSince:
				nodes[k.Node] = true
			}
		}
	}
	look(p.Blockers)
	for i := range p.All {
		if len(p.All[i].Uses) == 0 {
			look(p.All[i].Blockers)
		}
	}
	say := func(text string, args ...any) { p.Next = append(p.Next, fmt.Sprintf(text, args...)) }
	at := finding.Word(p.Bases)
	if all := p.With(RestoreNow); len(all) > 0 {
		say("bring back what is needed: shisa base restore %s %s", at, finding.LastWord(all[0].Name))
	}
	switch {
	case errors.Is(unread, fs.ErrPermission):
		say("what the pool keeps about itself belongs to others: run it as root, or as a user who may read all of %s",
			finding.Word(pool.Path(p.Bases)))
		return
	case unread != nil:
		say("have %s as it was: nothing is decided until it can be read", finding.Word(pool.Path(p.Bases, pool.File)))
		return
	}
	if has[Unfinished] || has[WasClaimed] {
		say("bring what was begun to its end: shisa base recover %s", at)
	}
	if has[NoPool] || has[NoShield] {
		say("give every base its second name: shisa base protect %s", at)
	}
	if has[Nobody] || has[Stranger] {
		say("on every node that uses the pool: shisa base agent %s (or by a timer: shisa base agent --once %s)", at, at)
	}
	for _, n := range sorted(nodes) {
		say("on %s: shisa base agent --once %s, and again after launch_grace of the pool; or shisa base node retire, if it "+
			"does not come back", n, at)
	}
	if has[NewCandidate] {
		say("when every node has reported once more: shisa base plan %s", at)
	}
	if has[TooMany] {
		say("choose what is set aside first: shisa base plan --only NAME --out plan.json %s", at)
	}
	if has[NodeGone] {
		say("put its documents back, or have the node speak: shisa base node join; one that does not come back is retired")
	}
	if has[NoOverlays] {
		say("mount what is not mounted; if it is right: --accept-risk=no-overlays:NODE")
	}
	if has[OtherStorage] {
		say("mount what is not mounted, and unmount what lies over images; if the storage was changed: --accept-risk=other-storage:NODE")
	}
	if has[PurgeOff] && len(p.With(MayPurge)) == 0 {
		say("removing for good takes allow_purge in %s/.shisa/pool.json, and purge in the configuration", at)
	}
	if has[NameTaken] {
		say("another file has the name of a base in quarantine: shisa base restore %s ID --as NAME keeps both; what protect "+
			"recorded of both tells whether they are the same", at)
	}
	if has[TooYoung] || has[NotLongEnough] {
		say("some bases are to wait, and it is said since when: shisa base plan --all %s", at)
	}
	if len(p.With(MayQuarantine)) > 0 {
		say(NextQuarantine+"shisa base plan --out plan.json %s, then shisa base quarantine --plan plan.json %s", at, at)
	}
	if len(p.With(MayPurge)) > 0 {
		say(NextPurge+"shisa base plan --out plan.json %s, then shisa base purge --plan plan.json --approve DIGEST %s", at, at)
	}
}

func sorted(m map[string]bool) (all []string) {
	for n := range m {
		all = append(all, n)
	}
	slices.Sort(all)
	return all
}
