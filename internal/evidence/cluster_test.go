// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const corosyncConf = `totem {
  version: 2
  token: 3000   # ms
  interface {
    token: 7
  }
}
nodelist {
  node {
    ring0_addr: 10.0.0.1
    name: n1
  }
  node {
    name: n2
  }
}
`

func TestCluster(t *testing.T) {
	e := gathered(t, map[string]string{"etc/corosync/corosync.conf": corosyncConf,
		"var/lib/pacemaker/cib/cib.xml": `<cib><nvpair name="stonith-enabled" value="false"/></cib>`})
	c := e.Cluster
	if !c.Present || c.Token != 3*time.Second || c.Fencing != "no" || len(c.Nodes) != 3 {
		t.Errorf("the cluster is %+v", c)
	}
	if gathered(t, map[string]string{"etc/hostname": "x"}).Cluster.Present {
		t.Error("there is a cluster without any sign of one")
	}
}

// TestClusterSaid holds that the last word counts.
func TestClusterSaid(t *testing.T) {
	say := func(form, node string) Event {
		return Event{Form: form, Fields: map[string]string{"node": node, "lockspace": "clvmd"}}
	}
	for _, c := range []struct {
		name    string
		events  []Event
		pending []string
		quorum  string
		waits   int
	}{
		{"needed", []Event{say("fence.needed", "n2")}, []string{"n2"}, "", 0},
		{"needed and failed", []Event{say("fence.needed", "n2"), say("fence.failed", "n2")}, []string{"n2"}, "", 0},
		{"done", []Event{say("fence.needed", "n2"), say("fence.done", "n2")}, nil, "", 0},
		{"another one done", []Event{say("fence.needed", "n2"), say("fence.needed", "n3"), say("fence.done", "n3")},
			[]string{"n2"}, "", 0},
		{"needed again", []Event{say("fence.needed", "n2"), say("fence.done", "n2"), say("fence.needed", "n2")},
			[]string{"n2"}, "", 0},
		{"locks wait", []Event{say("dlm.fencing", "")}, nil, "", 1},
		{"quorum lost", []Event{say("quorum.got", ""), say("quorum.lost", "")}, nil, "no", 0},
		{"quorum back", []Event{say("quorum.lost", ""), say("quorum.got", "")}, nil, "yes", 0},
		{"started anew", []Event{say("fence.needed", "n2"), say("quorum.lost", ""), say("kernel.boot", "")}, nil, "", 0},
	} {
		got := Cluster{Nodes: map[string]string{}, Waiting: map[string]string{}}
		got.said(&Log{Events: c.events})
		if len(got.Pending) == 0 {
			got.Pending = nil
		}
		if d := cmp.Diff(c.pending, got.Pending); d != "" || got.Quorum != c.quorum || len(got.Waiting) != c.waits {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}
