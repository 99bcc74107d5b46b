{{- define "voiceai.labels" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/part-of: voiceai
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{- end }}

{{- define "voiceai.selector" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/part-of: voiceai
{{- end }}

{{/* Settings as variables: common, own, then the files of secrets. A map, so that each name stands once. */}}
{{- define "voiceai.env" -}}
{{- $env := dict "ENVIRONMENT" .root.Values.environment "SHUTDOWN_TIMEOUT" (printf "%ds" (int .root.Values.shutdownTimeoutSeconds)) -}}
{{- $env = merge (deepCopy .own.settings) (deepCopy .root.Values.settings) $env -}}
{{- range $name, $key := merge (deepCopy .own.secretFiles) .root.Values.secret.files -}}
{{- $_ := set $env (printf "%s_FILE" $name) (printf "/etc/voiceai/secrets/%s" $key) -}}
{{- end -}}
{{- range $name, $value := $env }}
- name: {{ $name }}
  value: {{ $value | toString | quote }}
{{- end }}
{{- end }}

{{/* One Deployment; both services differ by name, resources and settings alone. */}}
{{- define "voiceai.deployment" -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .name }}
  labels: {{- include "voiceai.labels" . | nindent 4 }}
spec:
  {{- if .replicas }}
  replicas: {{ .replicas }}
  {{- end }}
  revisionHistoryLimit: 5
  selector:
    matchLabels: {{- include "voiceai.selector" . | nindent 6 }}
  strategy:
    type: RollingUpdate
    rollingUpdate: {maxSurge: 1, maxUnavailable: 0}
  template:
    metadata:
      labels: {{- include "voiceai.labels" . | nindent 8 }}
      {{- with .own.podAnnotations }}
      annotations: {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      serviceAccountName: {{ .name }}
      # Neither service talks to Kubernetes.
      automountServiceAccountToken: false
      # Variables for every service of the namespace would be taken for misspelt settings.
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ add .root.Values.shutdownTimeoutSeconds 5 }}
      {{- with .root.Values.image.pullSecrets }}
      imagePullSecrets: {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        runAsNonRoot: true
        runAsUser: 10001
        runAsGroup: 10001
        fsGroup: 10001
        seccompProfile: {type: RuntimeDefault}
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels: {{- include "voiceai.selector" . | nindent 14 }}
      {{- with .own.nodeSelector }}
      nodeSelector: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .own.tolerations }}
      tolerations: {{- toYaml . | nindent 8 }}
      {{- end }}
      containers:
        - name: {{ .name }}
          image: {{ printf "%s%s:%s" .root.Values.image.registry .name (.root.Values.image.tag | default .root.Chart.AppVersion) | quote }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          args: [run]
          env: {{- include "voiceai.env" . | nindent 12 }}
          resources: {{- toYaml .own.resources | nindent 12 }}
          # Live: no loop is stuck. A backend that is away restarts nothing.
          startupProbe:
            exec: {command: ["/usr/local/bin/{{ .name }}", healthcheck]}
            periodSeconds: 5
            timeoutSeconds: 5
            failureThreshold: 36
          livenessProbe:
            exec: {command: ["/usr/local/bin/{{ .name }}", healthcheck]}
            periodSeconds: 15
            timeoutSeconds: 5
            failureThreshold: 3
          readinessProbe:
            exec: {command: ["/usr/local/bin/{{ .name }}", healthcheck, --ready]}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 3
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {drop: [ALL]}
          volumeMounts:
            - {name: tmp, mountPath: /tmp}
            - {name: secrets, mountPath: /etc/voiceai/secrets, readOnly: true}
            {{- if .own.recordingsWork }}
            - {name: recordings, mountPath: /var/lib/voiceai-recordings}
            {{- end }}
      volumes:
        - name: tmp
          emptyDir: {medium: Memory, sizeLimit: 64Mi}
        {{- with .own.recordingsWork }}
        - name: recordings
          emptyDir: {sizeLimit: {{ .sizeLimit }}}
        {{- end }}
        - name: secrets
          secret: {secretName: {{ .root.Values.secret.name }}, defaultMode: 0440}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ .name }}
  labels: {{- include "voiceai.labels" . | nindent 4 }}
  {{- with .own.serviceAccountAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ .name }}
  labels: {{- include "voiceai.labels" . | nindent 4 }}
spec:
  {{- toYaml .own.disruptionBudget | nindent 2 }}
  selector:
    matchLabels: {{- include "voiceai.selector" . | nindent 6 }}
{{- if .root.Values.networkPolicy.enabled }}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ .name }}
  labels: {{- include "voiceai.labels" . | nindent 4 }}
spec:
  podSelector:
    matchLabels: {{- include "voiceai.selector" . | nindent 6 }}
  policyTypes: [Ingress, Egress]
  ingress: {{- toYaml .ingress | nindent 4 }}
  egress:
    # Names: the cluster's own resolver.
    - to:
        - namespaceSelector:
            matchLabels: {kubernetes.io/metadata.name: kube-system}
      ports:
        - {port: 53, protocol: UDP}
        - {port: 53, protocol: TCP}
    {{- toYaml .root.Values.networkPolicy.egress | nindent 4 }}
{{- end }}
{{- end }}
