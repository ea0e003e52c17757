// cuDNN's graph API, as cudnn_graph.h and the manual describe it; part of mock.cpp. Unlike the rest it computes: what a plan that is
// executed outside a capture says is done to the memory at once, where MOCK_COMPUTE is set.
//
// What it enforces: attributes that a descriptor has, of their type and number, before it is finished and never after; all that
// are required; nothing used before it is finished, or destroyed while another uses it, or a recorded graph its plan; packed
// NHWC tensors, whole alignments, one tensor for each number; shapes that fit each other; what is virtual made and read within
// the graph; packs that have the graph's stored tensors and no others, aligned, inside live memory; a whole workspace.
//
// Its engines, by number: 0 does not give the same bits every time, 1 is a Winograd transform, 2 wants 8 GB, 3 is compiled late, 4 has
// a knob, 5 refuses to be planned. What is fused has engine 4 from compute capability 8.0 on, bf16 engine 3 instead;
// MOCK_NO_ENGINE=norm or =sums takes that away.

enum { // cudnnBackendDescriptorType_t
    POINTWISE = 0, CONVOLUTION = 1, ENGINE = 2, ENGINECFG = 3, ENGINEHEUR = 4, PLAN = 5, KNOB = 7, FORWARD = 10, WGRAD = 11, DGRAD = 12,
    POINT_OP = 13, GENSTATS = 14, OPGRAPH = 15, PACK = 16, TENSOR = 17 };
enum { // cudnnBackendAttributeType_t
    T_HANDLE = 0, T_DATA = 1, T_BOOL = 2, T_I64 = 3, T_F32 = 4, T_POINTER = 6, T_CONV_MODE = 7, T_HEUR = 8, T_KNOB = 9, T_NUMERICAL = 11,
    T_POINT_MODE = 14, T_DESCRIPTOR = 15, T_STATS_MODE = 16, T_BEHAVIOUR = 19 };

struct AttributeRule { int kind, name, type; long least, most; bool required; };
static const AttributeRule ATTRIBUTES[] = {
    {POINTWISE, 0, T_POINT_MODE, 1, 1, true}, {POINTWISE, 1, T_DATA, 1, 1, true},
    {CONVOLUTION, 100, T_DATA, 1, 1, true}, {CONVOLUTION, 101, T_CONV_MODE, 1, 1, true}, {CONVOLUTION, 102, T_I64, 2, 2, true},
    {CONVOLUTION, 103, T_I64, 2, 2, true}, {CONVOLUTION, 104, T_I64, 2, 2, true}, {CONVOLUTION, 105, T_I64, 2, 2, true}, {CONVOLUTION, 106, T_I64, 1, 1, true},
    {ENGINEHEUR, 200, T_HEUR, 1, 1, true}, {ENGINEHEUR, 201, T_DESCRIPTOR, 1, 1, true},
    {ENGINECFG, 300, T_DESCRIPTOR, 1, 1, true}, {ENGINECFG, 302, T_DESCRIPTOR, 1, 46, false},
    {PLAN, 400, T_HANDLE, 1, 1, true}, {PLAN, 401, T_DESCRIPTOR, 1, 1, true},
    {KNOB, 600, T_KNOB, 1, 1, true}, {KNOB, 601, T_I64, 1, 1, true},
    {FORWARD, 700, T_F32, 1, 1, true}, {FORWARD, 701, T_F32, 1, 1, true}, {FORWARD, 702, T_DESCRIPTOR, 1, 1, true}, {FORWARD, 703, T_DESCRIPTOR, 1, 1, true},
    {FORWARD, 704, T_DESCRIPTOR, 1, 1, true}, {FORWARD, 705, T_DESCRIPTOR, 1, 1, true},
    {DGRAD, 706, T_F32, 1, 1, true}, {DGRAD, 707, T_F32, 1, 1, true}, {DGRAD, 708, T_DESCRIPTOR, 1, 1, true}, {DGRAD, 709, T_DESCRIPTOR, 1, 1, true},
    {DGRAD, 710, T_DESCRIPTOR, 1, 1, true}, {DGRAD, 711, T_DESCRIPTOR, 1, 1, true},
    {WGRAD, 712, T_F32, 1, 1, true}, {WGRAD, 713, T_F32, 1, 1, true}, {WGRAD, 714, T_DESCRIPTOR, 1, 1, true}, {WGRAD, 715, T_DESCRIPTOR, 1, 1, true},
    {WGRAD, 716, T_DESCRIPTOR, 1, 1, true}, {WGRAD, 717, T_DESCRIPTOR, 1, 1, true},
    {POINT_OP, 750, T_DESCRIPTOR, 1, 1, true}, {POINT_OP, 751, T_DESCRIPTOR, 1, 1, true}, {POINT_OP, 752, T_DESCRIPTOR, 1, 1, false}, {POINT_OP, 753, T_DESCRIPTOR, 1, 1, true},
    {GENSTATS, 770, T_STATS_MODE, 1, 1, true}, {GENSTATS, 771, T_DATA, 1, 1, true}, {GENSTATS, 772, T_DESCRIPTOR, 1, 1, true},
    {GENSTATS, 773, T_DESCRIPTOR, 1, 1, true}, {GENSTATS, 774, T_DESCRIPTOR, 1, 1, true},
    {OPGRAPH, 800, T_HANDLE, 1, 1, true}, {OPGRAPH, 801, T_DESCRIPTOR, 1, 16, true},
    {TENSOR, 900, T_I64, 1, 1, true}, {TENSOR, 901, T_DATA, 1, 1, true}, {TENSOR, 902, T_I64, 4, 4, true}, {TENSOR, 903, T_I64, 4, 4, true},
    {TENSOR, 906, T_I64, 1, 1, true}, {TENSOR, 907, T_BOOL, 1, 1, false},
    {PACK, 1000, T_I64, 1, 16, true}, {PACK, 1001, T_POINTER, 1, 16, true}, {PACK, 1003, T_POINTER, 1, 1, true},
    {ENGINE, 1300, T_DESCRIPTOR, 1, 1, true}, {ENGINE, 1301, T_I64, 1, 1, true},
};

struct Node {
    int kind;
    bool finished = false;
    std::map<int, std::vector<char>> attributes;
    template <class T> std::vector<T> all(int name) const {
        auto found = attributes.find(name);
        if (found == attributes.end()) return {};
        std::vector<T> values(found->second.size() / sizeof(T));
        memcpy(values.data(), found->second.data(), found->second.size());
        return values;
    }
    template <class T> T one(int name) const { return all<T>(name).at(0); }
    const Node& node(int name) const { return *one<const Node*>(name); }
    bool has(int name) const { return attributes.count(name); }
};

static std::set<void*> nodes;

static size_t node_count() { return nodes.size(); }

static u64 element_bytes(int type) {
    switch (type) {
        case T_BOOL: return 1;
        case T_HANDLE: case T_I64: case T_POINTER: case T_DESCRIPTOR: return 8;
    }
    return 4;
}

static const AttributeRule& rule_of(const Node& node, int name, int type, const char* call) {
    for (const AttributeRule& rule : ATTRIBUTES)
        if (rule.kind == node.kind && rule.name == name) {
            if (rule.type != type) broken("%s: attribute %d is of type %d, not %d", call, name, rule.type, type);
            return rule;
        }
    broken("%s: a descriptor of kind %d has no attribute %d", call, node.kind, name);
}

// ---- checks at the end of each descriptor ---------------------------------------------------------------------------

typedef std::vector<int64_t> Sides;

static Sides sides(const Node& tensor) { return tensor.all<int64_t>(902); }
static int data_of(const Node& tensor) { return tensor.one<int>(901); }
static bool is_virtual(const Node& tensor) { return tensor.has(907) && tensor.one<char>(907); }
static int64_t id_of(const Node& tensor) { return tensor.one<int64_t>(906); }
static u64 tensor_elements(const Node& tensor) { u64 n = 1; for (int64_t side : sides(tensor)) n *= side; return n; }

static void check_tensor(const Node& t) {
    const Sides d = sides(t), s = t.all<int64_t>(903);
    for (int i = 0; i < 4; i++) if (d[i] <= 0 || s[i] <= 0) broken("tensor %lld: side %lld, stride %lld", (long long)id_of(t), (long long)d[i], (long long)s[i]);
    const Sides packed = {d[1] * d[2] * d[3], 1, d[1] * d[3], d[1]};
    if (s != packed) broken("tensor %lld is not packed NHWC", (long long)id_of(t));
    if (t.one<int64_t>(900) % type_bytes(data_of(t) == 9 ? 14 : data_of(t))) broken("tensor %lld: alignment", (long long)id_of(t));
}

struct Pass { const Node *x, *w, *y, *conv; float beta; };

static Pass pass_of(const Node& op) {
    const int first = op.kind == FORWARD ? 700 : op.kind == DGRAD ? 706 : 712;
    if (op.one<float>(first) != 1.0f) broken("a convolution's alpha");
    const int x = op.kind == FORWARD ? 704 : op.kind == DGRAD ? 710 : 716, w = op.kind == FORWARD ? 703 : op.kind == DGRAD ? 709 : 715;
    return {&op.node(x), &op.node(w), &op.node(op.kind == FORWARD ? 705 : op.kind == DGRAD ? 711 : 717), &op.node(first + 2), op.one<float>(first + 1)};
}

static void check_convolution(const Node& op) {
    const Pass p = pass_of(op);
    const Sides x = sides(*p.x), w = sides(*p.w), y = sides(*p.y), pad = p.conv->all<int64_t>(105), stride = p.conv->all<int64_t>(103);
    if (p.beta != 0.0f && p.beta != 1.0f) broken("a convolution's beta");
    if (x[0] != y[0] || x[1] != w[1] || y[1] != w[0]) broken("an operation's tensors do not fit each other");
    for (int i : {0, 1})
        if (y[2 + i] != (x[2 + i] + 2 * pad[i] - w[2 + i]) / stride[i] + 1) broken("an operation's output side is %lld", (long long)y[2 + i]);
}

static void check_geometry(const Node& c) {
    if (c.one<int64_t>(106) != 2 || c.one<int>(100) != 0 || c.one<int>(101) != 1) broken("a convolution of other dimensions, sums or mode");
    if (c.all<int64_t>(102) != Sides{1, 1} || c.all<int64_t>(104) != c.all<int64_t>(105)) broken("a convolution's dilation or padding");
}

static void check_point(const Node& op) {
    const int mode = op.node(750).one<int>(0);
    const bool two = mode == 0 || mode == 1;
    if (!two && mode != 100) broken("pointwise mode %d", mode);
    if (op.has(752) != two) broken("pointwise mode %d with%s a second input", mode, two ? "out" : "");
    if (sides(op.node(751)) != sides(op.node(753))) broken("a pointwise operation's sides");
    if (two && sides(op.node(752)) != Sides{1, sides(op.node(751))[1], 1, 1}) broken("what is broadcast has one value a channel");
}

static void check_sums(const Node& op) {
    if (op.one<int>(770) != 0 || op.one<int>(771) != 0) broken("statistics of another mode or precision");
    for (int name : {773, 774})
        if (sides(op.node(name)) != Sides{1, sides(op.node(772))[1], 1, 1} || data_of(op.node(name)) != 0) broken("sums are f32, one a channel");
}

struct Flow { std::vector<const Node*> read, made; };

static Flow flow(const Node& op) {
    if (op.kind == POINT_OP) { Flow f{{&op.node(751)}, {&op.node(753)}}; if (op.has(752)) f.read.push_back(&op.node(752)); return f; }
    if (op.kind == GENSTATS) return {{&op.node(772)}, {&op.node(773), &op.node(774)}};
    const Pass p = pass_of(op);
    if (op.kind == FORWARD) return {{p.x, p.w}, {p.y}};
    if (op.kind == DGRAD) return {{p.w, p.y}, {p.x}};
    return {{p.x, p.y}, {p.w}};
}

// Tensors that are stored, by number.
static std::map<int64_t, const Node*> stored(const Node& graph) {
    std::map<int64_t, const Node*> all, known;
    std::set<const Node*> made, read;
    for (const Node* op : graph.all<const Node*>(801)) {
        const Flow f = flow(*op);
        made.insert(f.made.begin(), f.made.end());
        read.insert(f.read.begin(), f.read.end());
        for (auto& list : {f.read, f.made})
            for (const Node* t : list) {
                if (!known.emplace(id_of(*t), t).second && known[id_of(*t)] != t) broken("two tensors of a graph have the number %lld", (long long)id_of(*t));
                if (!is_virtual(*t)) all[id_of(*t)] = t;
            }
    }
    for (auto& one : known)
        if (is_virtual(*one.second) && (!made.count(one.second) || !read.count(one.second))) broken("virtual tensor %lld is not made and read within the graph", (long long)one.first);
    return all;
}

static const Node* op_of(const Node& graph, std::set<int> kinds) {
    for (const Node* op : graph.all<const Node*>(801)) if (kinds.count(op->kind)) return op;
    return nullptr;
}

struct Config { int64_t engine; std::vector<std::pair<int, int64_t>> knobs; };

static std::vector<Config> offers(const Node& graph) {
    const bool sums = op_of(graph, {GENSTATS}), norm = op_of(graph, {POINT_OP});
    if (!sums && !norm) return {{0, {}}, {1, {}}, {2, {}}, {3, {}}, {4, {{2, 0}}}, {4, {{2, 1}}}, {5, {}}};
    const char* none = getenv("MOCK_NO_ENGINE");
    if (number("MOCK_CAPABILITY", 80) < 80 || (none && (strcmp(none, "sums") == 0 || (norm && strcmp(none, "norm") == 0)))) return {};
    const int type = data_of(*pass_of(*op_of(graph, {FORWARD, DGRAD, WGRAD})).w);
    if (type == 9) return norm ? std::vector<Config>{} : std::vector<Config>{{3, {}}};
    return type == 2 ? std::vector<Config>{{4, {{2, 0}}}, {4, {{2, 1}}}, {5, {}}} : std::vector<Config>{};
}

static void check_config(const Node& config) {
    const Node& engine = config.node(300);
    const int64_t index = engine.one<int64_t>(1301);
    std::vector<std::pair<int, int64_t>> knobs;
    for (const Node* knob : config.all<const Node*>(302)) knobs.push_back({knob->one<int>(600), knob->one<int64_t>(601)});
    for (const Config& offer : offers(engine.node(1300))) if (offer.engine == index && offer.knobs == knobs) return;
    broken("engine %lld with knobs that nobody offered", (long long)index);
}

static void check_pack(const Node& pack) {
    const auto ids = pack.all<int64_t>(1000);
    if (ids.size() != pack.all<void*>(1001).size()) broken("a pack of %zu numbers and %zu pointers", ids.size(), pack.all<void*>(1001).size());
    if (std::set<int64_t>(ids.begin(), ids.end()).size() != ids.size()) broken("a pack has a number twice");
}

static int64_t workspace_of(const Node& plan) {
    const int64_t index = plan.node(401).node(300).one<int64_t>(1301);
    return index == 2 ? (int64_t)8 << 30 : 4096;
}

#include "mock_graph_run.h"

// ---- the functions --------------------------------------------------------------------------------------------------

template <class T> static Status give(const std::vector<T>& values, int64_t most, int64_t* count, void* to) {
    *count = most ? std::min(most, (int64_t)values.size()) : (int64_t)values.size();
    if (most) memcpy(to, values.data(), *count * sizeof(T));
    return 0;
}
static void fill_in(void* one, int kind, std::map<int, std::vector<char>> attributes) {
    Node* node = known<Node>(nodes, one, "a descriptor to be filled in");
    if (node->kind != kind || node->finished) broken("a descriptor to be filled in is of another kind, or finished");
    node->attributes = attributes;
    node->finished = true;
}
template <class T> static std::vector<char> bytes_of(T value) { std::vector<char> bytes(sizeof value); memcpy(bytes.data(), &value, sizeof value); return bytes; }

extern "C" {
Status cudnnBackendCreateDescriptor(int kind, void** to) {
    bool known = false;
    for (const AttributeRule& rule : ATTRIBUTES) known |= rule.kind == kind;
    if (!known) broken("a descriptor of kind %d", kind);
    nodes.insert(*to = new Node{kind});
    return 0;
}
Status cudnnBackendDestroyDescriptor(void* one) {
    Node* node = known<Node>(nodes, one, "graph descriptor");
    for (void* other : nodes)
        for (auto& attribute : ((Node*)other)->attributes)
            for (const AttributeRule& rule : ATTRIBUTES)
                if (rule.kind == ((Node*)other)->kind && rule.name == attribute.first && rule.type == T_DESCRIPTOR)
                    for (void* used : ((Node*)other)->all<void*>(attribute.first))
                        if (used == one) broken("a descriptor of kind %d is destroyed while one of kind %d uses it", node->kind, ((Node*)other)->kind);
    if (node->kind == PLAN)
        for (void* exec : execs) for (auto& work : ((Graph*)exec)->work) if (work.plan == one) broken("a plan is destroyed while a recorded graph names it");
    nodes.erase(one);
    delete node;
    return 0;
}
Status cudnnBackendSetAttribute(void* one, int name, int type, int64_t count, const void* from) {
    Node* node = known<Node>(nodes, one, "graph descriptor");
    if (node->finished) broken("attribute %d is set after its descriptor is finished", name);
    const AttributeRule& rule = rule_of(*node, name, type, "cudnnBackendSetAttribute");
    if (count < rule.least || count > rule.most) broken("attribute %d has %lld elements", name, (long long)count);
    const char* bytes = (const char*)from;
    if (type == T_DESCRIPTOR)
        for (int64_t i = 0; i < count; i++)
            if (!known<Node>(nodes, ((void**)from)[i], "an attribute that is a descriptor")->finished) broken("attribute %d is a descriptor that is not finished", name);
    if (type == T_HANDLE) known<Dnn>(cudnn_handles, *(void**)from, "cuDNN");
    node->attributes[name].assign(bytes, bytes + count * element_bytes(type));
    return 0;
}
Status cudnnBackendFinalize(void* one) {
    Node* node = known<Node>(nodes, one, "graph descriptor");
    if (node->finished) broken("a descriptor is finished twice");
    for (const AttributeRule& rule : ATTRIBUTES)
        if (rule.kind == node->kind && rule.required && !node->has(rule.name)) broken("a descriptor of kind %d wants attribute %d", node->kind, rule.name);
    switch (node->kind) {
        case TENSOR: check_tensor(*node); break;
        case CONVOLUTION: check_geometry(*node); break;
        case FORWARD: case DGRAD: case WGRAD: check_convolution(*node); break;
        case POINT_OP: check_point(*node); break;
        case GENSTATS: check_sums(*node); break;
        case OPGRAPH: stored(*node); break;
        case ENGINE: if (node->one<int64_t>(1301) < 0 || node->one<int64_t>(1301) > 5) return 2000; break;
        case ENGINECFG: check_config(*node); break;
        case PACK: check_pack(*node); break;
        case PLAN: if (node->node(401).node(300).one<int64_t>(1301) == 5) return 3000; break;
    }
    node->finished = true;
    return 0;
}
Status cudnnBackendGetAttribute(void* one, int name, int type, int64_t most, int64_t* count, void* to) {
    Node* node = known<Node>(nodes, one, "graph descriptor");
    if (!node->finished) broken("attribute %d is read before its descriptor is finished", name);
    if (node->kind == ENGINEHEUR && name == 202 && type == T_DESCRIPTOR) {
        const Node& graph = node->node(201);
        std::vector<Config> all = offers(graph);
        if (node->one<int>(200) == 2) all.resize(std::min<size_t>(all.size(), 1));
        *count = most ? std::min<int64_t>(most, all.size()) : (int64_t)all.size() + 1;  // one more than there turns out to be
        for (int64_t i = 0; most && i < *count; i++) {
            // Engine and knobs are cuDNN's own, and come and go with the configuration.
            Node* engine = new Node{ENGINE, true, {{1300, bytes_of(&graph)}, {1301, bytes_of(all[i].engine)}}};
            std::vector<char> knobs;
            for (auto& knob : all[i].knobs) {
                auto bytes = bytes_of(new Node{KNOB, true, {{600, bytes_of(knob.first)}, {601, bytes_of(knob.second)}}});
                knobs.insert(knobs.end(), bytes.begin(), bytes.end());
            }
            fill_in(((void**)to)[i], ENGINECFG, {{300, bytes_of(engine)}, {302, knobs}});
        }
        return 0;
    }
    if (node->kind == ENGINECFG && name == 300) {
        *count = 1;
        fill_in(*(void**)to, ENGINE, node->node(300).attributes);
        return 0;
    }
    if (node->kind == ENGINECFG && name == 302) {
        const auto knobs = node->all<const Node*>(302);
        *count = std::min<int64_t>(most, knobs.size());
        for (int64_t i = 0; i < *count; i++) fill_in(((void**)to)[i], KNOB, knobs[i]->attributes);
        return 0;
    }
    const int64_t index = node->kind == ENGINE ? node->one<int64_t>(1301) : -1;
    if (node->kind == ENGINE && name == 1303 && type == T_NUMERICAL) return give(index == 0 ? std::vector<int>{0, 4} : index == 1 ? std::vector<int>{5, 6} : std::vector<int>{0}, most, count, to);
    if (node->kind == ENGINE && name == 1305 && type == T_BEHAVIOUR) return give(index == 3 ? std::vector<int>{0, 3} : std::vector<int>{}, most, count, to);
    if (node->kind == PLAN && name == 402 && type == T_I64) return give(std::vector<int64_t>{workspace_of(*node)}, most, count, to);
    const AttributeRule& rule = rule_of(*node, name, type, "cudnnBackendGetAttribute");
    if (rule.type == T_DESCRIPTOR) broken("attribute %d is read by its pointers", name);
    auto& bytes = node->attributes[name];
    *count = bytes.size() / element_bytes(type);
    if (most) memcpy(to, bytes.data(), std::min<int64_t>(most, *count) * element_bytes(type));
    return 0;
}
Status cudnnBackendExecute(void* handle, void* plan, void* pack) {
    return run_plan(known<Dnn>(cudnn_handles, handle, "cuDNN"), *known<Node>(nodes, plan, "plan"), *known<Node>(nodes, pack, "pack"));
}
}
