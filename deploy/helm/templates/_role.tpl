{{- /* What a role is, in one place: image, bundle, ports, arguments. */ -}}

{{- define "role.facts" -}}
{{- $role := required "role: dealer, party0, party1, he or onehost" .Values.role -}}
{{- $facts := dict
  "dealer" (dict "image" "party" "bundle" "dealer.sqb" "port" 7000 "name" "deal" "cpu" "1" "memory" "2Gi" "words" "The dealer. It talks to nobody: the parties call it.")
  "party0" (dict "image" "party" "bundle" "party0.sqb" "port" 7100 "name" "infer" "cpu" "1" "memory" "2Gi" "words" "Party 0: opens the link to party 1.")
  "party1" (dict "image" "party" "bundle" "party1.sqb" "port" 7100 "name" "infer" "cpu" "1" "memory" "2Gi" "words" "Party 1: its link port is for party 0 alone.")
  "he" (dict "image" "he" "bundle" "server.sqb" "port" 7300 "name" "infer" "cpu" "2" "memory" "1Gi" "words" "The HE server is stateless: any number of replicas behind one service.")
  "onehost" (dict "image" "onehost" "bundle" "server.sqb" "port" 7400 "name" "infer" "cpu" "2" "memory" "2Gi" "words" "One host: it keeps pairings, and counts samples in a ledger on its own disk.")
-}}
{{- get $facts $role | toYaml -}}
{{- end -}}

{{- /* Whether the role is a StatefulSet of pods that each have a partner of the same number. */ -}}
{{- define "role.paired" -}}
{{- if and (hasPrefix "party" .Values.role) (gt (int .Values.pairs) 1) -}}yes{{- end -}}
{{- end -}}

{{- define "role.peer" -}}
{{- $paired := include "role.paired" . -}}
{{- if .Values.peer -}}
{{- if and $paired (not (contains "$(PAIR)" .Values.peer)) -}}
{{- fail "peer: with several pairs it says where, by $(PAIR)" -}}
{{- end -}}
{{ .Values.peer }}
{{- else -}}
{{ if $paired }}party1-$(PAIR).{{ end }}link.secure-quant-party1.svc:7200
{{- end -}}
{{- end -}}

{{- define "role.labels" -}}
app.kubernetes.io/name: secure-quant
app.kubernetes.io/component: {{ .Values.role }}
{{- end -}}

{{- define "role.image" -}}
{{- $facts := include "role.facts" . | fromYaml -}}
{{- $repository := .Values.image.repository | default (printf "secure-quant-%s" $facts.image) -}}
{{- if .Values.image.digest -}}
{{ $repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ $repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "role.args" -}}
{{- $facts := include "role.facts" . | fromYaml -}}
{{- $role := .Values.role -}}
- {{ $role | trimSuffix "0" | trimSuffix "1" | quote }}
- "--bundle"
- "/bundle/{{ $facts.bundle }}"
- "--listen"
- "0.0.0.0:{{ $facts.port }}"
{{- if eq $role "party0" }}
- "--peer"
- {{ include "role.peer" . | quote }}
{{- end }}
{{- if eq $role "party1" }}
- "--link-listen"
- "0.0.0.0:7200"
{{- end }}
{{- if hasPrefix "party" $role }}
- "--dealer"
- {{ .Values.dealer | quote }}
- "--lanes"
- {{ .Values.lanes | quote }}
{{- end }}
{{- $workers := .Values.workers }}
{{- if and (kindIs "invalid" $workers) (eq $role "he") }}
{{- $workers = 2 }}
{{- end }}
{{- if not (or (kindIs "invalid" $workers) (hasPrefix "party" $role)) }}
- "--workers"
- {{ int $workers | quote }}
{{- end }}
{{- if eq $role "onehost" }}
- "--ledger"
- "/ledger/served.json"
{{- end }}
{{- if and (eq $role "dealer") .Values.spool.enabled }}
- "--spool"
- "/spool"
{{- end }}
{{- if .Values.tokens.secret }}
- "--tokens"
- "/tokens/tokens"
{{- end }}
{{- if .Values.budgetStore.secret }}
- "--budget-store"
- "/store/url"
{{- if .Values.budgetStore.alone }}
- "--budget-alone"
{{- end }}
{{- end }}
{{- if .Values.metrics.enabled }}
- "--metrics"
- "0.0.0.0:{{ .Values.metrics.port }}"
{{- end }}
{{- with .Values.traces.collector }}
- "--traces"
- {{ . | quote }}
{{- end }}
{{- if .Values.web.enabled }}
- "--http-listen"
- "0.0.0.0:{{ .Values.web.port }}"
{{- with .Values.web.origins }}
- "--http-origins"
- {{ . | quote }}
{{- end }}
{{- if .Values.web.certificate }}
- "--http-cert"
- "/web/tls.crt"
- "--http-key"
- "/web/tls.key"
{{- end }}
{{- end }}
{{- range $name, $value := .Values.settings }}
{{- if kindIs "bool" $value }}
- {{ printf "--%s%s" (ternary "" "no-" $value) $name | quote }}
{{- else }}
- {{ printf "--%s" $name | quote }}
{{- /* Helm reads whole numbers as floats, whose text is 1e+07. */}}
{{- if and (kindIs "float64" $value) (eq (floor $value) $value) }}
- {{ printf "%.0f" $value | quote }}
{{- else }}
- {{ $value | toString | quote }}
{{- end }}
{{- end }}
{{- end }}
- "--tls"
- "/certs"
{{- end -}}

{{- define "role.health" -}}
{{- $facts := include "role.facts" . | fromYaml -}}
exec: {command: [secure-quant, health, --role, {{ .Values.role }}, --target, "127.0.0.1:{{ $facts.port }}", --tls, /certs]}
{{- end -}}

{{- define "role.certs" -}}
{{- $role := .Values.role -}}
{{- if .Values.certs.certManager.enabled -}}
secret:
  secretName: {{ $role }}-certificate
  defaultMode: 0440
  items:
    - {key: ca.crt, path: ca.pem}
    - {key: tls.crt, path: {{ $role }}.pem}
    - {key: tls.key, path: {{ $role }}.key}
{{- else -}}
secret: {secretName: {{ .Values.certs.secret }}, defaultMode: 0440}
{{- end -}}
{{- end -}}
