// What a plan does when it is executed; part of mock_graph.h.

// ---- values ---------------------------------------------------------------------------------------------------------

static float load(int type, const void* at, u64 index) {
    if (type == 0) return ((const float*)at)[index];
    const uint16_t bits = ((const uint16_t*)at)[index];
    if (type == 9) { const uint32_t wide = (uint32_t)bits << 16; float value; memcpy(&value, &wide, 4); return value; }
    _Float16 half;
    memcpy(&half, &bits, 2);
    return (float)half;
}

static void store(int type, void* at, u64 index, float value) {
    if (type == 0) { ((float*)at)[index] = value; return; }
    uint16_t bits;
    if (type == 9) {
        uint32_t wide;
        memcpy(&wide, &value, 4);
        bits = (uint16_t)((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
    } else {
        const _Float16 half = (_Float16)value;
        memcpy(&bits, &half, 2);
    }
    ((uint16_t*)at)[index] = bits;
}

struct Values { Sides side; std::vector<double> v; };  // NHWC

static u64 place(const Sides& d, int64_t n, int64_t c, int64_t h, int64_t w) { return ((n * d[2] + h) * d[3] + w) * d[1] + c; }

// Values of tensors by number, stored ones as they are in memory.
struct Values_of {
    std::map<int64_t, void*> at;
    std::map<int64_t, Values> virtuals;
    Values get(const Node& t) {
        if (is_virtual(t)) return virtuals.at(id_of(t));
        Values values{sides(t), std::vector<double>(tensor_elements(t))};
        for (u64 i = 0; i < values.v.size(); i++) values.v[i] = load(data_of(t), at.at(id_of(t)), i);
        return values;
    }
    void put(const Node& t, Values values) {
        if (is_virtual(t)) { virtuals[id_of(t)] = values; return; }
        for (u64 i = 0; i < values.v.size(); i++) store(data_of(t), at.at(id_of(t)), i, (float)values.v[i]);
    }
};

static void convolve(const Node& op, Values_of& all) {
    const Pass p = pass_of(op);
    const Node& to = op.kind == FORWARD ? *p.y : op.kind == DGRAD ? *p.x : *p.w;
    Values result = p.beta == 0.0f ? Values{sides(to), std::vector<double>(tensor_elements(to))} : all.get(to), x, w, y;
    Values &X = op.kind == DGRAD ? result : (x = all.get(*p.x)), &W = op.kind == WGRAD ? result : (w = all.get(*p.w)), &Y = op.kind == FORWARD ? result : (y = all.get(*p.y));
    const Sides dx = sides(*p.x), dw = sides(*p.w), dy = sides(*p.y), pad = p.conv->all<int64_t>(105), stride = p.conv->all<int64_t>(103);
    for (int64_t n = 0; n < dy[0]; n++) for (int64_t i = 0; i < dy[2]; i++) for (int64_t j = 0; j < dy[3]; j++) for (int64_t k = 0; k < dy[1]; k++)
        for (int64_t r = 0; r < dw[2]; r++) for (int64_t s = 0; s < dw[3]; s++) {
            const int64_t h = i * stride[0] + r - pad[0], q = j * stride[1] + s - pad[1];
            if (h < 0 || h >= dx[2] || q < 0 || q >= dx[3]) continue;
            for (int64_t c = 0; c < dx[1]; c++) {
                double &a = X.v[place(dx, n, c, h, q)], &b = W.v[place(dw, k, c, r, s)], &d = Y.v[place(dy, n, k, i, j)];
                if (op.kind == FORWARD) d += a * b; else if (op.kind == DGRAD) a += d * b; else b += a * d;
            }
        }
    all.put(to, result);
}

static void point(const Node& op, Values_of& all) {
    const int mode = op.node(750).one<int>(0);
    Values x = all.get(op.node(751)), b;
    if (op.has(752)) b = all.get(op.node(752));
    const int64_t channels = x.side[1];
    for (u64 e = 0; e < x.v.size(); e++) {
        const double other = op.has(752) ? b.v[e % channels] : 0;
        x.v[e] = mode == 0 ? x.v[e] + other : mode == 1 ? x.v[e] * other : x.v[e] < 0 ? 0 : x.v[e];
    }
    all.put(op.node(753), x);
}

static void sum(const Node& op, Values_of& all) {
    const Values x = all.get(op.node(772));
    const int64_t channels = x.side[1];
    Values sums{{1, channels, 1, 1}, std::vector<double>(channels)}, squares = sums;
    for (u64 e = 0; e < x.v.size(); e++) { sums.v[e % channels] += x.v[e]; squares.v[e % channels] += x.v[e] * x.v[e]; }
    all.put(op.node(773), sums);
    all.put(op.node(774), squares);
}

static Status run_plan(Dnn* handle, const Node& plan, const Node& pack) {
    if (plan.kind != PLAN || pack.kind != PACK || !plan.finished || !pack.finished) broken("cudnnBackendExecute of what is no finished plan or pack");
    if (plan.one<void*>(400) != (void*)handle) broken("a plan runs on another handle than its own");
    const Node& engine = plan.node(401).node(300);
    const int64_t index = engine.one<int64_t>(1301), wanted = workspace_of(plan);
    if (index == 0 && !getenv("MOCK_FREE")) broken("a deterministic run uses an engine that is not");
    if (index == 1) broken("an engine that transforms what it multiplies");
    const Node& graph = engine.node(1300);
    if (index == 3 && !op_of(graph, {GENSTATS, POINT_OP})) broken("an engine that is compiled late, where others are ready");
    const auto ids = pack.all<int64_t>(1000);
    const auto pointers = pack.all<void*>(1001);
    Values_of all;
    for (size_t i = 0; i < ids.size(); i++) all.at[ids[i]] = pointers[i];
    Work work{0, {}};
    const auto tensors = stored(graph);
    for (auto& one : tensors) {
        if (!all.at.count(one.first)) broken("a pack without tensor %lld", (long long)one.first);
        const u64 at = (u64)all.at[one.first], type = data_of(*one.second) == 0 ? 4 : 2;
        if (at % one.second->one<int64_t>(900)) broken("tensor %lld lies at %llx, less aligned than it says", (long long)one.first, (unsigned long long)at);
        work.ranges.push_back({at, type * tensor_elements(*one.second), "a tensor of a plan"});
    }
    if (all.at.size() != tensors.size()) broken("a pack with tensors that the graph has not");
    work.ranges.push_back({(u64)pack.one<void*>(1003), (u64)wanted, "a plan's workspace"});
    const int64_t knob = index == 4 ? plan.node(401).all<const Node*>(302).at(0)->one<int64_t>(601) : 0;
    work.cost = index == 4 && knob == 1 ? 7e-4 : 9e-4;
    work.plan = &plan;
    const bool captured = handle->stream->capture;
    enqueue(handle->stream, work, "cudnnBackendExecute");
    if (captured || !getenv("MOCK_COMPUTE")) return 0;
    for (const Node* op : graph.all<const Node*>(801))
        if (op->kind == POINT_OP) point(*op, all); else if (op->kind == GENSTATS) sum(*op, all); else convolve(*op, all);
    return 0;
}
